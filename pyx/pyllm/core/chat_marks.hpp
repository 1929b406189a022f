// Which bytes of a rendered prompt came in with the messages, and limits on what a template may do.
//
// llama.cpp's Jinja interpreter marks strings that came from outside and carries the marks along, but throws them away
// when a prompt is done, and some of its functions lose them on the way (split, join, tojson, keys of objects). Here the
// program of a template is wrapped: its last result is kept with its marks, the marks that get lost are put back, and
// loops, macros and repetition are counted. What is rendered, and how, stays llama.cpp's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// Its classes are told apart by their type_info, which must be the same one here and in llama.cpp's library.
#ifdef __GNUC__
#pragma GCC visibility push(default)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include "chat.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"
#ifdef __GNUC__
#pragma GCC diagnostic pop
#pragma GCC visibility pop
#endif

namespace pyllm {

// ---- one rendered text, and what is kept about a thread that renders

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

struct limit_exceeded : std::runtime_error {
    using std::runtime_error::runtime_error;
};

static constexpr uint64_t MAX_STEPS   = 1u << 20;   // rounds of loops and calls of macros
static constexpr size_t   MAX_TEXT    = 64u << 20;  // bytes of one string
static constexpr size_t   MAX_PARTS   = 1u << 18;   // pieces that it is put together from
static constexpr int64_t  MAX_RANGE   = 1 << 14;
static constexpr int64_t  MAX_INDENT  = 1024;
static constexpr size_t   MAX_NESTING = 512;        // values in values

struct renderer {
    std::vector<marked_text> renders;  // all of one call: llama.cpp renders a template many times to learn its format
    std::vector<std::string> names;    // variables that came with the call, beside messages and tools
    std::time_t              now = 0;  // what the template believes; 0: the clock
    uint64_t                 steps = 0;
    std::string              exceeded;  // the limit that was hit: llama.cpp swallows some exceptions
    const char *             stack = nullptr;
    size_t                   stack_size = 0;

    [[noreturn]] void stop(const std::string & why) {
        if (exceeded.empty()) {
            exceeded = why;
        }
        throw limit_exceeded(why);
    }

    void step() {
        const char here = 0;
        if (!exceeded.empty() || ++steps > MAX_STEPS) {
            stop("the template takes more than " + std::to_string(MAX_STEPS) + " rounds of loops and calls of macros");
        }
        if ((size_t) (stack - &here) > stack_size / 2) {
            stop("the macros of the template call each other too deeply");
        }
    }
};

static thread_local renderer * rendering = nullptr;

// ---- marks on values

static bool has_input(const jinja::value & value, size_t depth = 0) {
    if (depth > MAX_NESTING) {
        return true;
    }
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
            if (has_input(item, depth + 1)) {
                return true;
            }
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & item : value->val_obj) {
            if (has_input(item.first, depth + 1) || has_input(item.second, depth + 1)) {
                return true;
            }
        }
    } else if (const auto * keyword = jinja::cast_val<jinja::value_kwarg>(value)) {
        return has_input(keyword->val, depth + 1);
    }
    return false;
}

// Names of arguments are as foreign as their values, and only the values are marked.
static void mark_keys(const jinja::value & value, size_t depth = 0) {
    if (depth > MAX_NESTING) {
        return;
    }
    if (jinja::is_val<jinja::value_array>(value)) {
        for (const auto & item : value->val_arr) {
            mark_keys(item, depth + 1);
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & item : value->val_obj) {
            item.first->val_str.mark_input();
            mark_keys(item.second, depth + 1);
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

// A piece cut out of `whole`: it has the marks it had there; in several places, those of all of them.
static jinja::value cut_from(const marked_text & whole, const std::string & piece) {
    marked_text result{ piece, std::string(piece.size(), 0) };
    size_t      at    = piece.empty() ? std::string::npos : whole.text.find(piece);
    bool        found = piece.empty();
    for (int tries = 0; at != std::string::npos; at = whole.text.find(piece, at + 1)) {
        found = true;
        if (++tries > 64) {
            return input_string(piece);
        }
        for (size_t i = 0; i < piece.size(); ++i) {
            result.marks[i] |= whole.marks[at + i];
        }
    }
    return found ? jinja::mk_val<jinja::value_string>(unflatten(result)) : input_string(piece);
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
    const bool is_string = jinja::is_val<jinja::value_string>(result);
    if (args.count() == 0 || (!is_string && !jinja::is_val<jinja::value_array>(result))) {
        return result;
    }
    bool any = false;
    for (const auto & arg : args.get_args()) {
        any = any || has_input(arg);
    }
    if (!any) {
        return result;
    }
    const jinja::value first = args.get_pos(0);
    if (!is_string) {  // split, rsplit
        const marked_text whole = flatten(first->as_string());
        auto              items = jinja::mk_val<jinja::value_array>();
        for (const auto & item : result->val_arr) {
            items->push_back(jinja::is_val<jinja::value_string>(item) ? cut_from(whole, item->val_str.str()) : item);
        }
        return items;
    }
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
        return cut_from(flatten(first->as_string()), text);
    } else if (name == "format" && !has_input(first)) {
        return result;
    }
    return input_string(text);
}

// ---- the interpreter's functions

static void check_range(const jinja::func_args & args) {
    double numbers[3] = { 0, 0, 1 };
    size_t n          = 0;
    for (const auto & arg : args.get_args()) {
        if (n < 3 && jinja::is_val<jinja::value_int>(arg)) {
            numbers[n++] = (double) arg->as_int();
        }
    }
    const double start = n == 1 ? 0 : numbers[0], stop = n == 1 ? numbers[0] : numbers[1], step = numbers[2];
    if (step != 0 && (stop - start) / step > (double) MAX_RANGE) {
        rendering->stop("the template asks for a range of more than " + std::to_string(MAX_RANGE) + " numbers");
    }
}

static bool contains(const jinja::value & whole, const jinja::value & part, size_t depth = 0) {
    if (whole == part || depth > MAX_NESTING) {
        return true;
    }
    for (const auto & item : whole->val_arr) {
        if (contains(item, part, depth + 1)) {
            return true;
        }
    }
    for (const auto & item : whole->val_obj) {
        if (contains(item.second, part, depth + 1)) {
            return true;
        }
    }
    return false;
}

static void check_call(const std::string & name, const jinja::func_args & args) {
    if (name == "range") {
        check_range(args);
    } else if (name == "test_is_divisibleby") {
        if (args.count() > 1 && jinja::is_val<jinja::value_int>(args.get_pos(1)) && args.get_pos(1)->as_int() + 1 <= 1 &&
            args.get_pos(1)->as_int() >= -1) {
            throw std::runtime_error("divisibleby needs a number that is neither 0 nor -1");
        }
    } else if (name == "indent" || name == "tojson") {
        for (const auto & arg : args.get_args()) {
            const auto * keyword = jinja::cast_val<jinja::value_kwarg>(arg);
            const auto & value   = keyword ? keyword->val : arg;
            if (&arg != &args.get_args()[0] && jinja::is_val<jinja::value_int>(value) && value->as_int() > MAX_INDENT) {
                rendering->stop("the template asks for an indent of more than " + std::to_string(MAX_INDENT));
            }
        }
    } else if (name == "append") {
        if (args.count() > 1 && contains(args.get_pos(1), args.get_pos(0))) {
            throw std::runtime_error("a list cannot be put into itself");
        }
    }
}

static void wrap_functions(const jinja::func_builtins & functions, const std::vector<std::string> & names) {
    // The tables are private to the interpreter and made once. They are not constant data, only handed out as such.
    auto & table = const_cast<jinja::func_builtins &>(functions);
    for (const auto & name : names) {
        const auto found = table.find(name);
        if (found == table.end()) {
            throw std::runtime_error("llama.cpp's Jinja interpreter has no function '" + name + "' any more");
        }
        const jinja::func_handler original = found->second;
        found->second = [original, name](const jinja::func_args & args) -> jinja::value {
            if (rendering == nullptr) {
                return original(args);
            }
            check_call(name, args);
            jinja::value result = original(args);
            return args.ctx.is_get_stats ? result : remark(name, result, args);
        };
    }
}

static void wrap_all_functions_now() {
    wrap_functions(jinja::global_builtins(), { "range", "tojson", "test_is_divisibleby" });
    wrap_functions(
        jinja::value_string_t().get_builtins(), { "split", "rsplit", "replace", "slice", "indent", "format", "tojson" });
    wrap_functions(jinja::value_array_t().get_builtins(), { "join", "string", "tojson", "append" });
    wrap_functions(jinja::value_object_t().get_builtins(), { "string", "tojson" });
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

// Concatenation and repetition: the interpreter writes lists and objects without marks.
struct marked_binary : jinja::expression {
    jinja::token         op;
    jinja::statement_ptr left;
    jinja::statement_ptr right;

    explicit marked_binary(jinja::binary_expression & from)
        : op(from.op), left(std::move(from.left)), right(std::move(from.right)) {
        pos = from.pos;
    }

    std::string type() const override { return "BinaryExpression"; }

    static bool is_container(const jinja::value & value) {
        return jinja::is_val<jinja::value_array>(value) || jinja::is_val<jinja::value_object>(value);
    }

    static size_t length(const jinja::value & value) {
        return jinja::is_val<jinja::value_string>(value) ? value->val_str.length() : 0;
    }

    static size_t pieces(const jinja::value & value) {
        return jinja::is_val<jinja::value_string>(value) ? value->val_str.parts.size() : 0;
    }

    jinja::value execute_impl(jinja::context & ctx) const override {
        const jinja::value a = left->execute(ctx);
        const jinja::value b = right->execute(ctx);
        if (rendering && op.value == "*") {
            const int64_t n = jinja::is_val<jinja::value_int>(a) ? a->as_int() : jinja::is_val<jinja::value_int>(b) ? b->as_int() : 0;
            if (n > MAX_RANGE && (length(a) || length(b))) {
                rendering->stop("the template repeats a text more than " + std::to_string(MAX_RANGE) + " times");
            }
        } else if (rendering && (length(a) + length(b) > MAX_TEXT || pieces(a) + pieces(b) > MAX_PARTS)) {
            rendering->stop(
                "the template builds a text of more than " + std::to_string(MAX_TEXT) + " bytes or " +
                std::to_string(MAX_PARTS) + " pieces");
        }
        jinja::binary_expression plain(op, std::make_unique<constant_value>(a), std::make_unique<constant_value>(b));
        plain.pos           = pos;
        jinja::value result = plain.execute_impl(ctx);
        if (!ctx.is_get_stats && jinja::is_val<jinja::value_string>(result) && (is_container(a) || is_container(b)) &&
            (has_input(a) || has_input(b))) {
            return input_string(result->val_str.str());
        }
        return result;
    }
};

// `text[i]` gives a character without marks.
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

    std::string type() const override { return inner->type(); }

    jinja::value execute_impl(jinja::context & ctx) const override {
        jinja::value result = inner->execute_impl(ctx);
        const auto * set    = jinja::cast_stmt<jinja::set_statement>(inner);
        const auto * member = jinja::cast_stmt<jinja::member_expression>(set->assignee);
        const auto   object = member->object->execute(ctx);
        for (const auto & item : object->val_obj) {
            if (marked_binary::is_container(item.second) && contains(item.second, object)) {
                object->val_obj.clear();
                if (auto * broken = dynamic_cast<jinja::value_object_t *>(object.get())) {
                    broken->unordered.clear();
                }
                if (rendering) {
                    rendering->stop("the template puts an object into itself");
                }
                throw std::runtime_error("an object cannot be put into itself");
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

static void wrap_body(jinja::statements & nodes) {
    wrap_list(nodes);
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
        wrap_list(n->body);
        wrap_list(n->alternate);
    } else if (auto * n = dynamic_cast<jinja::for_statement *>(node)) {
        if (dynamic_cast<jinja::select_expression *>(n->iterable.get())) {
            wrap_inside(n->iterable.get());
        } else {
            wrap(n->iterable);
        }
        wrap_body(n->body);
        wrap_list(n->default_block);
    } else if (auto * n = dynamic_cast<jinja::set_statement *>(node)) {
        wrap(n->val);
        wrap_list(n->body);
    } else if (auto * n = dynamic_cast<jinja::macro_statement *>(node)) {
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
        wrap_list(n->body);
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
        if (binary->op.value == "~" || binary->op.value == "+" || binary->op.value == "*") {
            node = std::make_unique<marked_binary>(*binary);
        }
    } else if (auto * member = dynamic_cast<jinja::member_expression *>(node.get())) {
        if (member->computed) {
            node = std::make_unique<marked_member>(std::move(node));
        }
    } else if (auto * set = dynamic_cast<jinja::set_statement *>(node.get())) {
        if (dynamic_cast<jinja::member_expression *>(set->assignee.get())) {
            node = std::make_unique<checked_set>(std::move(node));
        }
    }
}

static void wrap_program(jinja::program & program) {
    wrap_list(program.body);
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

// ---- reading a template, with limits on what is nested in it

static constexpr size_t MAX_SOURCE     = 4u << 20;
static constexpr size_t MAX_EXPRESSION = 4096;  // tokens between {{ and }}, or {% and %}
static constexpr size_t MAX_BLOCKS     = 4096;  // statements that begin a block, {% elif %} included

static bool begins_block(const std::string & word) {
    for (const char * known : { "if", "elif", "for", "macro", "call", "filter", "set" }) {
        if (word == known) {
            return true;
        }
    }
    return false;
}

// The parser recurses for what is nested, and for {% elif %} after {% elif %}.
static void check_nesting(const std::vector<jinja::token> & tokens) {
    size_t in_expression = 0, blocks = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const auto kind = tokens[i].t;
        const bool opens = kind == jinja::token::open_statement || kind == jinja::token::open_expression;
        in_expression    = opens || kind == jinja::token::text || kind == jinja::token::comment ? 0 : in_expression + 1;
        if (kind == jinja::token::open_statement && i + 1 < tokens.size()) {
            blocks += begins_block(tokens[i + 1].value);
        }
        if (in_expression > MAX_EXPRESSION) {
            throw limit_exceeded("an expression of the template has more than " + std::to_string(MAX_EXPRESSION) + " parts");
        }
        if (blocks > MAX_BLOCKS) {
            throw limit_exceeded("the template has more than " + std::to_string(MAX_BLOCKS) + " blocks");
        }
    }
}

// Throws where llama.cpp could not read the template or would not come back from it.
static void check_template(const std::string & source) {
    if (source.size() > MAX_SOURCE) {
        throw limit_exceeded(
            "the template has " + std::to_string(source.size()) + " bytes; up to " + std::to_string(MAX_SOURCE) + " are read");
    }
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
