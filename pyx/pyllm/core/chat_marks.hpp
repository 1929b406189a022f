// Which bytes of a rendered prompt came in with the messages.
//
// llama.cpp's Jinja interpreter marks strings that came from outside and carries the marks along, but throws them away
// when a prompt is done, and some of its functions lose them on the way (split, join, tojson, keys of objects). Here the
// program of a template is wrapped: its last result is kept with its marks, the marks that get lost are put back, and
// the limits of chat_limits.hpp are watched. What is rendered, and how, stays llama.cpp's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "chat_limits.hpp"

namespace pyllm {

// ---- one rendered text

struct marked_text {
    std::string text;
    std::string marks;  // one byte for each of the text: 1 where it came in with the messages

    void append(const std::string & piece, bool is_input) {
        text += piece;
        marks.append(piece.size(), is_input ? 1 : 0);
    }
};

static inline marked_text flatten(const jinja::string & value) {
    marked_text result;
    for (const auto & part : value.parts) {
        result.append(part.val, part.is_input);
    }
    return result;
}

static inline jinja::string unflatten(const marked_text & value) {
    jinja::string result;
    for (size_t i = 0; i < value.text.size();) {
        size_t end = i;
        while (end < value.text.size() && value.marks[end] == value.marks[i]) {
            ++end;
        }
        result.parts.push_back({ value.marks[i] != 0, value.text.substr(i, end - i) });
        i = end;
    }
    return result;
}

// ---- marks on values

static bool has_input(const jinja::value & value) {
    if (jinja::is_val<jinja::value_string>(value)) {
        for (const auto & part : value->val_str.parts) {
            if (part.is_input && !part.val.empty()) {
                return true;
            }
        }
        return false;
    }
    if (jinja::is_val<jinja::value_array>(value)) {
        for (const auto & item : value->val_arr) {
            if (has_input(item)) {
                return true;
            }
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & item : value->val_obj) {
            if (has_input(item.first) || has_input(item.second)) {
                return true;
            }
        }
    } else if (const auto * keyword = jinja::cast_val<jinja::value_kwarg>(value)) {
        return has_input(keyword->val);
    }
    return false;
}

// Names of arguments are as foreign as their values, and only the values are marked.
static void mark_keys(const jinja::value & value) {
    if (jinja::is_val<jinja::value_array>(value)) {
        for (const auto & item : value->val_arr) {
            mark_keys(item);
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & item : value->val_obj) {
            item.first->val_str.mark_input();
            mark_keys(item.second);
        }
    }
}

static void unmark(const jinja::value & value) {
    for (auto & part : value->val_str.parts) {
        part.is_input = false;
    }
}

static bool is_plain_word(const std::string & text) {
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
        if (!plain) {
            return false;
        }
    }
    return !text.empty() && text.size() <= 32;
}

// Templates make control tokens of roles ("<|" + role + "|>") and write the tokens that they are given.
static void prepare(jinja::context & ctx, const renderer & state) {
    if (state.now != 0) {
        ctx.current_time = state.now;
    }
    for (const char * name : { "bos_token", "eos_token" }) {
        const auto value = ctx.get_val(name);
        if (jinja::is_val<jinja::value_string>(value)) {
            unmark(value);
        }
    }
    const auto messages = ctx.get_val("messages");
    mark_keys(messages);
    mark_keys(ctx.get_val("tools"));
    for (const auto & name : state.names) {
        const auto value = ctx.get_val(name);
        mark_keys(value);
        if (jinja::is_val<jinja::value_string>(value)) {
            value->val_str.mark_input();
        }
    }
    if (jinja::is_val<jinja::value_array>(messages)) {
        for (const auto & message : messages->val_arr) {
            if (jinja::is_val<jinja::value_object>(message)) {
                for (const auto & item : message->val_obj) {
                    if (item.first->val_str.str() == "role" && jinja::is_val<jinja::value_string>(item.second) &&
                        is_plain_word(item.second->val_str.str())) {
                        unmark(item.second);
                    }
                }
            }
        }
    }
}

static jinja::value input_string(const std::string & text) {
    return jinja::mk_val<jinja::value_string>(jinja::string(text, true));
}

// The piece that begins at `begin`, with the marks it has there; where it is another one, all of it counts as input.
static jinja::value cut_from(const marked_text & whole, size_t begin, const std::string & piece) {
    if (begin > whole.text.size() || whole.text.compare(begin, piece.size(), piece) != 0) {
        return input_string(piece);
    }
    return jinja::mk_val<jinja::value_string>(unflatten({ piece, whole.marks.substr(begin, piece.size()) }));
}

// What split and rsplit give: the pieces stand one after the other, with the delimiter between.
static jinja::value split_items(const jinja::value & result, const jinja::func_args & args) {
    const marked_text whole     = flatten(args.get_pos(0)->as_string());
    const size_t      delimiter = args.count() > 1 ? args.get_pos(1)->as_string().length() : 1;
    auto              items     = jinja::mk_val<jinja::value_array>();
    size_t            begin     = 0;
    for (const auto & item : result->val_arr) {
        items->push_back(cut_from(whole, begin, item->val_str.str()));
        begin += item->val_str.length() + delimiter;
    }
    return items;
}

// Where a slice begins, as Python counts; of one that takes not each character, nowhere.
static size_t slice_begin(const jinja::func_args & args, size_t length) {
    const auto step = args.get_pos(3, jinja::mk_val<jinja::value_int>(1));
    if (!jinja::is_val<jinja::value_int>(args.get_pos(1)) || !jinja::is_val<jinja::value_int>(step) || step->as_int() != 1) {
        return std::string::npos;
    }
    const int64_t begin = args.get_pos(1)->as_int();
    const int64_t size  = (int64_t) length;
    return (size_t) (begin < 0 ? std::max<int64_t>(size + begin, 0) : std::min(begin, size));
}

static marked_text replaced(const marked_text & whole, const std::string & old_text, const marked_text & new_text) {
    marked_text result;
    size_t      at = 0;
    for (;;) {
        const size_t next = old_text.empty() ? std::string::npos : whole.text.find(old_text, at);
        const size_t end  = next == std::string::npos ? whole.text.size() : next;
        result.text.append(whole.text, at, end - at);
        result.marks.append(whole.marks, at, end - at);
        if (next == std::string::npos) {
            return result;
        }
        result.text += new_text.text;
        result.marks += new_text.marks;
        at = next + old_text.size();
    }
}

static marked_text joined_items(const jinja::func_args & args) {
    marked_text       result;
    const auto        undefined = jinja::mk_val<jinja::value_undefined>();
    const auto        delimiter = args.get_kwarg_or_pos("d", 1);
    const auto        attribute = args.get_kwarg_or_pos("attribute", 2);
    const auto &      items     = args.get_pos(0)->as_array();
    for (size_t i = 0; i < items.size(); ++i) {
        jinja::value item = items[i];
        if (!attribute->is_undefined()) {
            jinja::value none = undefined;
            item              = jinja::is_val<jinja::value_object>(item) ? item->at(attribute, none) : none;
        }
        for (const auto & part : item->as_string().parts) {
            result.append(part.val, part.is_input);
        }
        if (i + 1 < items.size() && !delimiter->is_undefined()) {
            for (const auto & part : delimiter->as_string().parts) {
                result.append(part.val, part.is_input);
            }
        }
    }
    return result;
}

// The result of one of the interpreter's functions, with the marks that it should have.
static jinja::value remark(const std::string & name, const jinja::value & result, const jinja::func_args & args) {
    const bool is_split = name == "split" || name == "rsplit";
    if (args.count() == 0 || !(is_split || jinja::is_val<jinja::value_string>(result))) {
        return result;
    }
    bool any = false;
    for (const auto & arg : args.get_args()) {
        if (!any && is_container(arg)) {
            weigh(arg);
        }
        any = any || has_input(arg);
    }
    if (!any) {
        return result;
    }
    if (is_split) {
        return split_items(result, args);
    }
    const jinja::value first = args.get_pos(0);
    const std::string text = result->val_str.str();
    if (name == "replace" && jinja::is_val<jinja::value_string>(first)) {
        const marked_text marked =
            replaced(flatten(first->as_string()), args.get_pos(1)->as_string().str(), flatten(args.get_pos(2)->as_string()));
        if (marked.text == text) {
            return jinja::mk_val<jinja::value_string>(unflatten(marked));
        }
    } else if (name == "join" && jinja::is_val<jinja::value_array>(first)) {
        const marked_text marked = joined_items(args);
        if (marked.text == text) {
            return jinja::mk_val<jinja::value_string>(unflatten(marked));
        }
    } else if (name == "slice" && jinja::is_val<jinja::value_string>(first)) {
        const marked_text whole = flatten(first->as_string());
        return cut_from(whole, slice_begin(args, whole.text.size()), text);
    } else if (name == "format" && !has_input(first)) {
        return result;
    }
    return input_string(text);
}

// ---- the interpreter's functions

// Those that lose marks: what they give is marked again.
static bool loses_marks(const std::string & name) {
    for (const char * one :
         { "format", "indent", "join", "replace", "rsplit", "slice", "split", "strftime_now", "string", "tojson" }) {
        if (name == one) {
            return true;
        }
    }
    return false;
}

struct wrapped_function {
    std::string         name;
    jinja::func_handler original;
    bool                loses;

    jinja::value call(const jinja::func_args & args) const {
        if (rendering == nullptr) {
            return original(args);
        }
        check_call(name, args);
        jinja::value result = original(args);
        check_result(name, result);
        return loses && !args.ctx.is_get_stats ? remark(name, result, args) : result;
    }
};

static void wrap_functions(const jinja::func_builtins & functions, const std::vector<std::string> & known) {
    for (const auto & name : known) {
        if (functions.find(name) == functions.end()) {
            throw std::runtime_error("llama.cpp's Jinja interpreter has no function '" + name + "' any more");
        }
    }
    // The tables are private to the interpreter and made once. They are not constant data, only handed out as such. It
    // copies them all the time: what is put into them has to be small.
    for (auto & item : const_cast<jinja::func_builtins &>(functions)) {
        const auto * function = new wrapped_function{ item.first, item.second, loses_marks(item.first) };
        item.second           = [function](const jinja::func_args & args) { return function->call(args); };
    }
}

static void wrap_all_functions_now() {
    wrap_functions(
        jinja::global_builtins(),
        { "range", "tojson", "test_is_divisibleby", "test_is_in", "strftime_now", "namespace", "dict" });
    wrap_functions(
        jinja::value_string_t().get_builtins(), { "split", "rsplit", "replace", "slice", "indent", "format", "tojson" });
    wrap_functions(jinja::value_array_t().get_builtins(), { "join", "string", "tojson", "append", "sort" });
    wrap_functions(jinja::value_object_t().get_builtins(), { "string", "tojson", "items", "dictsort" });
}

// Once per process, before any template is run.
static void wrap_all_functions() {
    static std::once_flag once;
    std::call_once(once, wrap_all_functions_now);
}

// ---- statements of our own in the program of a template

struct constant_value : jinja::expression {
    jinja::value held;
    explicit constant_value(jinja::value value) : held(std::move(value)) {}
    jinja::value execute_impl(jinja::context &) const override { return held; }
};

// At the head of the body of loops and macros.
struct count_step : jinja::statement {
    jinja::value execute_impl(jinja::context &) const override {
        if (rendering) {
            rendering->step();
        }
        return jinja::mk_val<jinja::value_undefined>();
    }
};

// Operators that make texts and lists, or search: the interpreter writes lists and objects without marks.
struct marked_binary : jinja::expression {
    jinja::token         op;
    jinja::statement_ptr left;
    jinja::statement_ptr right;

    explicit marked_binary(jinja::binary_expression & from)
        : op(from.op), left(std::move(from.left)), right(std::move(from.right)) {
        pos = from.pos;
    }

    std::string type() const override { return "BinaryExpression"; }

    static void check(const std::string & op, const jinja::value & a, const jinja::value & b) {
        const size_t bytes = length_of(a) + length_of(b), pieces = a->val_str.parts.size() + b->val_str.parts.size();
        if (op == "in" || op == "not in") {
            check_search(a, b);
        } else if (op == "*") {
            const int64_t n = jinja::is_val<jinja::value_int>(a) ? a->as_int() : jinja::is_val<jinja::value_int>(b) ? b->as_int() : 0;
            if (n > 0 && ((double) n * (double) bytes > (double) MAX_TEXT || (double) n * (double) pieces > (double) MAX_PARTS)) {
                rendering->stop("the template repeats a text too often");
            }
        } else if (bytes > MAX_TEXT || pieces > MAX_PARTS) {
            rendering->stop(
                "the template builds a text of more than " + std::to_string(MAX_TEXT) + " bytes or " +
                std::to_string(MAX_PARTS) + " pieces");
        } else if (jinja::is_val<jinja::value_array>(a) && jinja::is_val<jinja::value_array>(b)) {
            if (a->val_arr.size() + b->val_arr.size() > MAX_ITEMS) {
                rendering->stop("the template builds a list of more than " + std::to_string(MAX_ITEMS) + " items");
            }
        } else if (is_container(a) || is_container(b)) {
            weigh(a);
            weigh(b);
        }
    }

    jinja::value execute_impl(jinja::context & ctx) const override {
        const jinja::value a = left->execute(ctx);
        const jinja::value b = right->execute(ctx);
        if (rendering) {
            rendering->tick();
            check(op.value, a, b);
        }
        jinja::binary_expression plain(op, std::make_unique<constant_value>(a), std::make_unique<constant_value>(b));
        plain.pos           = pos;
        jinja::value result = plain.execute_impl(ctx);
        if (rendering) {
            rendering->make(text_size(result) + sizeof(jinja::value) * result->val_arr.size());
        }
        if (!ctx.is_get_stats && jinja::is_val<jinja::value_string>(result) && (is_container(a) || is_container(b)) &&
            (has_input(a) || has_input(b))) {
            return input_string(result->val_str.str());
        }
        return result;
    }
};

// `text[i]` and `text.0` give a character without marks.
struct marked_member : jinja::expression {
    jinja::statement_ptr inner;

    explicit marked_member(jinja::statement_ptr && from) : inner(std::move(from)) { pos = inner->pos; }

    std::string type() const override { return inner->type(); }

    jinja::value execute_impl(jinja::context & ctx) const override {
        jinja::value result = inner->execute_impl(ctx);
        if (!ctx.is_get_stats && jinja::is_val<jinja::value_string>(result) && result->val_str.length() == 1) {
            return input_string(result->val_str.str());
        }
        return result;
    }
};

// `ns.name = value`: what contains itself cannot be written down.
struct checked_set : jinja::statement {
    jinja::statement_ptr inner;

    explicit checked_set(jinja::statement_ptr && from) : inner(std::move(from)) { pos = inner->pos; }

    std::string type() const override { return "Set"; }

    jinja::value execute_impl(jinja::context & ctx) const override {
        jinja::value result = inner->execute_impl(ctx);
        if (rendering == nullptr) {
            return result;
        }
        const auto * set    = jinja::cast_stmt<jinja::set_statement>(inner);
        const auto * member = jinja::cast_stmt<jinja::member_expression>(set->assignee);
        const auto   object = member->object->execute(ctx);
        const auto & value  = object->at(jinja::cast_stmt<jinja::identifier>(member->property)->val);
        if (is_container(value) && contains(value, object)) {
            object->val_obj.clear();
            if (auto * broken = dynamic_cast<jinja::value_object_t *>(object.get())) {
                broken->unordered.clear();
            }
            rendering->stop("the template puts an object into itself");
        }
        check_insertion(value, false);
        return result;
    }
};

// `[…]`, `(…)` and `{…}`.
struct checked_literal : jinja::expression {
    jinja::statement_ptr inner;

    explicit checked_literal(jinja::statement_ptr && from) : inner(std::move(from)) { pos = inner->pos; }

    std::string type() const override { return inner->type(); }

    jinja::value execute_impl(jinja::context & ctx) const override {
        jinja::value result = inner->execute_impl(ctx);
        if (rendering) {
            rendering->tick();
            const weight size = weigh(result);
            rendering->spend(size.bytes + VALUE_SIZE * (1 + result->val_arr.size() + 2 * result->val_obj.size()));
        }
        return result;
    }
};

// What is written in a loop, a condition or a macro is collected there before it goes on.
struct checked_output : jinja::statement {
    jinja::statement_ptr inner;

    explicit checked_output(jinja::statement_ptr && from) : inner(std::move(from)) { pos = inner->pos; }

    std::string type() const override { return inner->type(); }

    jinja::value execute_impl(jinja::context & ctx) const override {
        jinja::value result = inner->execute_impl(ctx);
        if (rendering) {
            rendering->tick();
            if (jinja::is_val<jinja::value_array>(result)) {
                const weight size = weigh(result);
                rendering->spend(size.bytes + PART_SIZE * size.values);
            } else {
                rendering->spend(text_size(result));
            }
        }
        return result;
    }
};

// The whole program: what it gives is kept with its marks.
struct recorded_program : jinja::statement {
    jinja::statements body;

    explicit recorded_program(jinja::statements && from) : body(std::move(from)) { pos = 0; }

    std::string type() const override { return "Program"; }

    jinja::value execute_impl(jinja::context & ctx) const override {
        const bool record = rendering && !ctx.is_get_stats;
        if (record) {
            prepare(ctx, *rendering);
        }
        auto results = jinja::mk_val<jinja::value_array>();
        for (const auto & statement : body) {
            results->push_back(statement->execute(ctx));
        }
        if (record) {
            rendering->renders.push_back(flatten(jinja::runtime::gather_string_parts(results)->val_str));
        }
        return results;
    }
};

// ---- putting them in

static void wrap(jinja::statement_ptr & node);

static void wrap_inside(jinja::statement * node);

static void wrap_list(jinja::statements & nodes) {
    for (auto & node : nodes) {
        wrap(node);
    }
}

static void wrap_output(jinja::statements & nodes) {
    for (auto & node : nodes) {
        wrap(node);
        node = std::make_unique<checked_output>(std::move(node));
    }
}

// Of what may be done again and again.
static void wrap_body(jinja::statements & nodes) {
    wrap_output(nodes);
    nodes.insert(nodes.begin(), std::make_unique<count_step>());
    nodes.front()->pos = 0;
}

// What is in a node, but not the node: for places where the interpreter looks at the class of what it finds.
static void wrap_inside(jinja::statement * node) {
    if (node == nullptr) {
        return;
    }
    if (auto * n = dynamic_cast<jinja::if_statement *>(node)) {
        wrap(n->test);
        wrap_output(n->body);
        wrap_output(n->alternate);
    } else if (auto * n = dynamic_cast<jinja::for_statement *>(node)) {
        note_name(n->loopvar);
        if (dynamic_cast<jinja::select_expression *>(n->iterable.get())) {
            wrap_inside(n->iterable.get());
        } else {
            wrap(n->iterable);
        }
        wrap_body(n->body);
        wrap_output(n->default_block);
    } else if (auto * n = dynamic_cast<jinja::set_statement *>(node)) {
        note_name(n->assignee);
        wrap(n->val);
        wrap_output(n->body);
    } else if (auto * n = dynamic_cast<jinja::macro_statement *>(node)) {
        note_name(n->name);
        for (auto & arg : n->args) {
            wrap_inside(arg.get());
        }
        wrap_body(n->body);
    } else if (auto * n = dynamic_cast<jinja::call_statement *>(node)) {
        wrap_inside(n->call.get());
        for (auto & arg : n->caller_args) {
            wrap_inside(arg.get());
        }
        wrap_body(n->body);
    } else if (auto * n = dynamic_cast<jinja::filter_statement *>(node)) {
        wrap_inside(n->filter.get());
        wrap_output(n->body);
    } else if (auto * n = dynamic_cast<jinja::member_expression *>(node)) {
        wrap(n->object);
        if (n->computed) {
            if (dynamic_cast<jinja::slice_expression *>(n->property.get())) {
                wrap_inside(n->property.get());
            } else {
                wrap(n->property);
            }
        }
    } else if (auto * n = dynamic_cast<jinja::call_expression *>(node)) {
        wrap_inside(n->callee.get());
        wrap_list(n->args);
    } else if (auto * n = dynamic_cast<jinja::array_literal *>(node)) {
        wrap_list(n->val);
    } else if (auto * n = dynamic_cast<jinja::tuple_literal *>(node)) {
        wrap_list(n->val);
    } else if (auto * n = dynamic_cast<jinja::object_literal *>(node)) {
        for (auto & item : n->val) {
            wrap(item.first);
            wrap(item.second);
        }
    } else if (auto * n = dynamic_cast<jinja::binary_expression *>(node)) {
        wrap(n->left);
        wrap(n->right);
    } else if (auto * n = dynamic_cast<jinja::filter_expression *>(node)) {
        wrap(n->operand);
        wrap_inside(n->filter.get());
    } else if (auto * n = dynamic_cast<jinja::select_expression *>(node)) {
        wrap(n->lhs);
        wrap(n->test);
    } else if (auto * n = dynamic_cast<jinja::test_expression *>(node)) {
        wrap(n->operand);
        wrap_inside(n->test.get());
    } else if (auto * n = dynamic_cast<jinja::unary_expression *>(node)) {
        wrap(n->argument);
    } else if (auto * n = dynamic_cast<jinja::slice_expression *>(node)) {
        wrap(n->start_expr);
        wrap(n->stop_expr);
        wrap(n->step_expr);
    } else if (auto * n = dynamic_cast<jinja::keyword_argument_expression *>(node)) {
        wrap(n->val);
    } else if (auto * n = dynamic_cast<jinja::spread_expression *>(node)) {
        wrap(n->argument);
    } else if (auto * n = dynamic_cast<jinja::ternary_expression *>(node)) {
        wrap(n->condition);
        wrap(n->true_expr);
        wrap(n->false_expr);
    }
}

static void wrap(jinja::statement_ptr & node) {
    wrap_inside(node.get());
    if (auto * binary = dynamic_cast<jinja::binary_expression *>(node.get())) {
        for (const char * op : { "~", "+", "*", "in", "not in" }) {
            if (binary->op.value == op) {
                node = std::make_unique<marked_binary>(*binary);
                break;
            }
        }
    } else if (auto * member = dynamic_cast<jinja::member_expression *>(node.get())) {
        if (member->computed || jinja::is_stmt<jinja::integer_literal>(member->property)) {
            node = std::make_unique<marked_member>(std::move(node));
        }
    } else if (auto * set = dynamic_cast<jinja::set_statement *>(node.get())) {
        if (dynamic_cast<jinja::member_expression *>(set->assignee.get())) {
            node = std::make_unique<checked_set>(std::move(node));
        }
    } else if (dynamic_cast<jinja::array_literal *>(node.get()) || dynamic_cast<jinja::tuple_literal *>(node.get()) ||
               dynamic_cast<jinja::object_literal *>(node.get())) {
        node = std::make_unique<checked_literal>(std::move(node));
    }
}

static void wrap_program(jinja::program & program) {
    std::set<std::string> names;
    names_set = &names;
    wrap_output(program.body);
    names_set = nullptr;
    auto whole = std::make_unique<recorded_program>(std::move(program.body));
    program.body.clear();
    program.body.push_back(std::move(whole));
}

// ---- what is inside a common_chat_templates, which chat.h only names; tests compare this with chat.cpp

struct chat_templates_layout {
    bool                                  add_bos;
    bool                                  add_eos;
    bool                                  has_explicit_template;
    std::unique_ptr<common_chat_template> template_default;
    std::unique_ptr<common_chat_template> template_tool_use;
};

// Throws where llama.cpp could not read the template or would not come back from it.
static void check_template(const std::string & source) {
    check_source(source);
    jinja::lexer   lexer;
    const auto     lexed = lexer.tokenize(source);
    check_nesting(lexed.tokens);
    jinja::program program = jinja::parse_from_tokens(lexed);
    wrap_program(program);
    jinja::caps_get(program);  // it is the first thing that llama.cpp runs with a template
    if (!rendering->exceeded.empty()) {
        throw limit_exceeded(rendering->exceeded);
    }
}

// ---- from the texts that were rendered to the marks of the prompt

static size_t common_prefix(const std::string & a, const std::string & b) {
    const size_t n = std::min(a.size(), b.size());
    return std::mismatch(a.begin(), a.begin() + n, b.begin()).first - a.begin();
}

static size_t common_suffix(const std::string & a, const std::string & b, size_t limit) {
    const size_t n = std::min({ a.size(), b.size(), limit });
    return std::mismatch(a.rbegin(), a.rbegin() + n, b.rbegin()).first - a.rbegin();
}

// Marks of `text`, which is one of the renders, or one that was changed a little afterwards. What cannot be found in it
// counts as input: it may become ordinary text where a control token was meant, but never the other way round.
static std::string marks_of(const std::string & text, const std::vector<marked_text> & renders, const std::string & bos) {
    std::string best(text.size(), 1);
    size_t      covered = 0;
    for (const auto & render : renders) {
        for (const size_t skip : { (size_t) 0, bos.size() }) {
            if (skip > 0 && render.text.compare(0, skip, bos) != 0) {
                continue;
            }
            const std::string body   = render.text.substr(skip);
            const std::string marks  = render.marks.substr(skip);
            const size_t      prefix = common_prefix(text, body);
            const size_t      suffix = common_suffix(text, body, std::min(text.size(), body.size()) - prefix);
            if (prefix + suffix < covered || (covered > 0 && prefix + suffix == covered)) {
                continue;
            }
            covered = prefix + suffix;
            best    = std::string(text.size(), 1);
            best.replace(0, prefix, marks, 0, prefix);
            best.replace(text.size() - suffix, suffix, marks, marks.size() - suffix, suffix);
            // A token that was put in the place of another one of the template's own is the template's.
            const size_t removed_end = body.size() - suffix;
            bool         input       = prefix == removed_end;
            for (size_t i = prefix; i < removed_end; ++i) {
                input = input || marks[i];
            }
            if (!input) {
                best.replace(prefix, text.size() - suffix - prefix, text.size() - suffix - prefix, 0);
            }
        }
    }
    return best;
}

}  // namespace pyllm
