// The one place where text becomes HTML: what it makes is only what is allowed here.

import "./vendor/dompurify/purify.min.js";

const { DOMPurify } = globalThis;

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a blockquote br code del div em h3 h4 h5 h6 hr li ol p pre span strong".split(" "),
    ..."table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  // Other protocols can run scripts; addresses without one lead into this page.
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

/**
 * The nodes of HTML that this page has made of a text. The policy of the page lets no other way to HTML exist.
 *
 * @param {string} html The HTML.
 * @returns {DocumentFragment}
 */
export function nodesOf(html) {
  return DOMPurify.sanitize(html, ALLOWED);
}
