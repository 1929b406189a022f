// The texts that were generated from one prompt: a tree, in which each branch begins with another token.

/**
 * One line of the tree: what stands before position `at` is its parent's, the rest is its own.
 *
 * @typedef {{parent: Branch|null, at: number, tokens: object[], children: Branch[], note: string}} Branch
 */

export class Tree {
  /** @param {object[]} prompt The tokens of the prompt. */
  constructor(prompt) {
    this.promptLength = prompt.length;
    this.root = branch(null, 0, prompt);
    this.current = this.root;
  }

  /** All tokens of a branch, from the first of the prompt on. */
  path(of = this.current) {
    const parts = [];
    let end = Infinity;
    for (let one = of; one !== null; one = one.parent) {
      parts.unshift(end === Infinity ? one.tokens : one.tokens.slice(0, end - one.at));
      end = one.at;
    }
    return parts.flat();
  }

  /**
   * Go on from another token at some position of the current branch.
   *
   * @param {number} at The position.
   * @param {object} token What stands there instead.
   * @returns {{branch: Branch, made: boolean}} The branch, which is current now, and whether it is new.
   */
  fork(at, token) {
    const parent = this.#parentAt(at);
    if (parent.tokens[at - parent.at]?.id === token.id) {
      this.current = parent;
      return { branch: parent, made: false };
    }
    let found = parent.children.find((one) => one.at === at && one.tokens[0].id === token.id);
    const made = found === undefined;
    if (made) {
      found = branch(parent, at, [token]);
      parent.children.push(found);
    }
    this.current = found;
    return { branch: found, made };
  }

  /** The branches that leave a path at each position of it: the position, and how many. */
  forks(of = this.current) {
    const counts = new Map();
    let end = Infinity;
    for (let one = of; one !== null; one = one.parent) {
      for (const child of one.children) {
        if (child.at < end || (child.at === end && one !== of)) counts.set(child.at, (counts.get(child.at) ?? 0) + 1);
      }
      end = one.at;
    }
    return counts;
  }

  // Branches at the same position are siblings, whichever of them is shown.
  #parentAt(at) {
    let one = this.current;
    while (one.parent !== null && at <= one.at) one = one.parent;
    return one;
  }
}

function branch(parent, at, tokens) {
  return { parent, at, tokens, children: [], note: "" };
}
