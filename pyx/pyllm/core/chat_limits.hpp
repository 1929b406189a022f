// Limits on what a template may do: how long it runs, how large its texts and values are, how deep they are nested.
//
// A template comes with a model file, and may be anybody's. What llama.cpp's Jinja interpreter would do without end, or
// with more memory than there is, or what would make it read past its own, is stopped before it begins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef _WIN32
#include <chrono>
#endif

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

struct limit_exceeded : std::runtime_error {
    using std::runtime_error::runtime_error;
};

static constexpr uint64_t MAX_STEPS      = 1u << 20;    // rounds of loops and calls of macros
static constexpr double   MAX_SECONDS    = 20;          // of a processor's time
static constexpr uint64_t MAX_MEMORY     = 1ull << 30;  // bytes of all texts and values together
static constexpr size_t   UNCOUNTED      = 1u << 20;    // of these, what is smaller: there are few variables
static constexpr size_t   MAX_TEXT       = 64u << 20;   // bytes of one text, or of all in one value
static constexpr size_t   MAX_PARTS      = 1u << 18;    // pieces that a text is put together from
static constexpr size_t   MAX_ITEMS      = 1u << 18;    // of a list that is made of two
static constexpr size_t   MAX_VALUES     = 1u << 21;    // values in one value
static constexpr size_t   MAX_NESTING    = 512;         // values in values, beside what came with the call
static constexpr size_t   MAX_INSERTIONS = 1u << 16;    // lists and objects that are put into others afterwards
static constexpr size_t   MAX_FUNCTIONS  = 1u << 12;    // functions that are put into them: they hold all variables
static constexpr int64_t  MAX_RANGE      = 1 << 14;
static constexpr int64_t  MAX_NUMBER     = int64_t(1) << 53;
static constexpr int64_t  MAX_INDENT     = 1024;
static constexpr double   MAX_SEARCH     = 1e11;  // characters that are compared or moved in one call
static constexpr size_t   VALUE_SIZE     = 400;   // bytes that a value takes
static constexpr size_t   PART_SIZE      = 48;

static inline double seconds() {
#ifdef _WIN32
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#else
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double) time.tv_sec + 1e-9 * (double) time.tv_nsec;
#endif
}

struct marked_text;

// What is kept about a thread that renders.
struct renderer {
    std::vector<marked_text> renders;  // all of one call: llama.cpp renders a template many times to learn its format
    std::vector<std::string> names;    // variables that came with the call, beside messages and tools
    std::time_t              now = 0;  // what the template believes; 0: the clock
    std::string              exceeded;  // the limit that was hit: llama.cpp swallows some exceptions
    const char *             stack = nullptr;
    size_t                   stack_size = 0;
    size_t                   max_nesting = MAX_NESTING;
    uint64_t                 steps = 0, ticks = 0, memory = 0, insertions = 0, functions = 0;
    double                   deadline = seconds() + MAX_SECONDS;

    [[noreturn]] void stop(const std::string & why) {
        if (exceeded.empty()) {
            exceeded = why;
        }
        throw limit_exceeded(why);
    }

    void tick() {
        if (!exceeded.empty()) {
            stop(exceeded);
        }
        if (++ticks % 64 == 0) {
            check_time();
        }
    }

    void check_time() {
        if (seconds() > deadline) {
            stop("the template takes more than " + std::to_string((int) MAX_SECONDS) + " seconds");
        }
    }

    void step() {
        const char here = 0;
        tick();
        if (++steps > MAX_STEPS) {
            stop("the template takes more than " + std::to_string(MAX_STEPS) + " rounds of loops and calls of macros");
        }
        if ((size_t) (stack - &here) > stack_size / 2) {
            stop("the macros of the template call each other too deeply");
        }
    }

    void spend(size_t bytes) {
        memory += bytes;
        if (memory > MAX_MEMORY) {
            stop("the template makes more than " + std::to_string(MAX_MEMORY) + " bytes of texts and values");
        }
    }

    // What may be gone again at once counts only where it is large.
    void make(size_t bytes) {
        if (bytes > UNCOUNTED) {
            check_time();
            spend(bytes);
        }
    }

    void check_text(double bytes) {
        if (bytes > (double) MAX_TEXT) {
            stop("the template builds a text of more than " + std::to_string(MAX_TEXT) + " bytes");
        }
    }

    void check_search(double comparisons) {
        if (comparisons > MAX_SEARCH) {
            stop("the template searches for too much in too long a text");
        }
    }
};

static thread_local renderer * rendering = nullptr;

// ---- sizes of values

static inline bool is_container(const jinja::value & value) {
    return jinja::is_val<jinja::value_array>(value) || jinja::is_val<jinja::value_object>(value);
}

static inline size_t text_size(const jinja::value & value) {
    return value->val_str.length() + PART_SIZE * value->val_str.parts.size();
}

// A value when it is written out: what is in it twice counts twice.
struct weight {
    size_t bytes = 0, values = 0, depth = 0, functions = 0;

    void add(const jinja::value & value, size_t level = 0) {
        bytes += value->val_str.length();
        functions += value->val_func != nullptr;
        depth = std::max(depth, level);
        if (++values > MAX_VALUES || bytes > MAX_TEXT) {
            rendering->stop("the template builds a value of more than " + std::to_string(MAX_VALUES) +
                            " values or " + std::to_string(MAX_TEXT) + " bytes");
        }
        if (level > rendering->max_nesting) {
            rendering->stop("the template nests values deeper than " + std::to_string(rendering->max_nesting));
        }
        for (const auto & item : value->val_arr) {
            add(item, level + 1);
        }
        for (const auto & item : value->val_obj) {
            add(item.first, level + 1);
            add(item.second, level + 1);
        }
        if (level == 0 && jinja::is_val<jinja::value_kwarg>(value)) {
            add(jinja::cast_val<jinja::value_kwarg>(value)->val, level + 1);
        }
    }
};

static inline weight weigh(const jinja::value & value) {
    weight result;
    result.add(value);
    return result;
}

// Whether a value is in another one, or in one that is in it; true as well where that cannot be said soon.
static bool contains(const jinja::value & whole, const jinja::value & part, size_t & patience) {
    if (whole == part || patience == 0) {
        return true;
    }
    --patience;
    for (const auto & item : whole->val_arr) {
        if (contains(item, part, patience)) {
            return true;
        }
    }
    for (const auto & item : whole->val_obj) {
        if (contains(item.second, part, patience)) {
            return true;
        }
    }
    return false;
}

static inline bool contains(const jinja::value & whole, const jinja::value & part) {
    size_t patience = MAX_VALUES;
    return contains(whole, part, patience);
}

// A value goes into another that is there already. What is freed is freed one inside the other.
static inline void check_insertion(const jinja::value & part, bool adds) {
    const weight size = weigh(part);
    if (adds) {
        rendering->spend(size.bytes + VALUE_SIZE * size.values);
    }
    rendering->insertions += is_container(part);
    rendering->functions += size.functions;
    if (rendering->insertions > MAX_INSERTIONS || rendering->functions > MAX_FUNCTIONS) {
        rendering->stop("the template puts more than " + std::to_string(MAX_INSERTIONS) + " values or " +
                        std::to_string(MAX_FUNCTIONS) + " functions into others");
    }
}

// ---- calls of functions

static size_t count(const std::string & text, const std::string & part) {
    if (part.empty()) {
        return text.size() + 1;
    }
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) {
        ++n;
    }
    return n;
}

static inline size_t length_of(const jinja::value & value) {
    return jinja::is_val<jinja::value_string>(value) ? value->val_str.length() : 0;
}

static inline void check_search(const jinja::value & part, const jinja::value & text) {
    rendering->check_search((double) length_of(part) * (double) length_of(text));
}

static void check_range(const jinja::func_args & args) {
    double numbers[3] = { 0, 0, 1 };
    size_t n          = 0;
    bool   huge       = false;
    for (const auto & arg : args.get_args()) {
        if (n < 3 && jinja::is_val<jinja::value_int>(arg)) {
            huge         = huge || arg->as_int() > MAX_NUMBER || arg->as_int() < -MAX_NUMBER;
            numbers[n++] = (double) arg->as_int();
        }
    }
    const double start = n == 1 ? 0 : numbers[0], stop = n == 1 ? numbers[0] : numbers[1], step = numbers[2];
    if (huge || (step != 0 && (stop - start) / step > (double) MAX_RANGE)) {
        rendering->stop("the template asks for a range of more than " + std::to_string(MAX_RANGE) + " numbers");
    }
}

static void check_indent(const std::string & name, const jinja::func_args & args) {
    for (const auto & arg : args.get_args()) {
        const auto * keyword = jinja::cast_val<jinja::value_kwarg>(arg);
        const auto & value   = keyword ? keyword->val : arg;
        if (&arg != &args.get_args()[0] && jinja::is_val<jinja::value_int>(value) &&
            (value->as_int() > MAX_INDENT || value->as_int() < -MAX_INDENT)) {
            rendering->stop("the template asks for an indent of more than " + std::to_string(MAX_INDENT));
        }
    }
    const jinja::value first = args.get_pos(0);
    const jinja::value width = args.get_kwarg_or_pos(name == "indent" ? "width" : "indent", name == "indent" ? 1 : 2);
    double             n     = jinja::is_val<jinja::value_int>(width) ? (double) width->as_int() : (double) length_of(width);
    if (name == "indent") {
        if (jinja::is_val<jinja::value_string>(first)) {
            rendering->check_text((double) count(first->val_str.str(), "\n") * std::max(n, 4.0));
        }
        return;
    }
    const weight       size       = weigh(first);
    const jinja::value separators = args.get_kwarg_or_pos("separators", 3);
    n                             = std::max(n, 0.0) * (double) (size.depth + 1);
    for (const auto & separator : separators->val_arr) {
        n += (double) length_of(separator);
    }
    rendering->check_text((double) size.values * n);
}

static void check_replace(const jinja::func_args & args) {
    if (args.count() < 3 || !jinja::is_val<jinja::value_string>(args.get_pos(0))) {
        return;
    }
    check_search(args.get_pos(1), args.get_pos(0));
    const double text = (double) length_of(args.get_pos(0));
    const double more = (double) length_of(args.get_pos(2)) - (double) length_of(args.get_pos(1));
    if (more != 0) {
        const double n = (double) count(args.get_pos(0)->val_str.str(), args.get_pos(1)->as_string().str());
        rendering->check_text(text + n * more);
        rendering->check_search(n * text);  // each time the rest is moved
    }
}

static void check_split(const jinja::func_args & args) {
    if (args.count() == 0 || !jinja::is_val<jinja::value_string>(args.get_pos(0))) {
        return;
    }
    const std::string text      = args.get_pos(0)->val_str.str();
    const std::string delimiter = args.count() > 1 && jinja::is_val<jinja::value_string>(args.get_pos(1)) ?
                                      args.get_pos(1)->val_str.str() :
                                      " ";
    rendering->check_search((double) delimiter.size() * (double) text.size());
    const size_t n = count(text, delimiter);
    // It cuts off one piece after the other, and moves the rest each time.
    rendering->check_search((double) n * (double) text.size());
    rendering->make(n * VALUE_SIZE);
}

static void check_join(const jinja::func_args & args) {
    const weight       size      = weigh(args.get_pos(0));
    const jinja::value delimiter = args.get_kwarg_or_pos("d", 1);
    rendering->check_text((double) args.get_pos(0)->val_arr.size() * (double) length_of(delimiter) + (double) size.bytes);
}

// std::sort reads past the end where an order is none: 2 < 10 as numbers, 10 < "1a" and "1a" < 2 as texts.
static void check_order(const std::vector<jinja::value> & values) {
    int kind = -1;
    for (const auto & value : values) {
        const bool is_float  = jinja::is_val<jinja::value_float>(value);
        const bool is_number = is_float || jinja::is_val<jinja::value_int>(value);
        const int  its       = is_number ? 0 : jinja::is_val<jinja::value_string>(value) ? 1 : 2;
        if ((kind >= 0 && its != kind) || (is_float && std::isnan(value->as_float()))) {
            throw std::runtime_error("sorting needs values of one kind: all numbers, or all texts");
        }
        kind = its;
    }
}

static void check_sort(const std::string & name, const jinja::func_args & args) {
    std::vector<jinja::value> keys;
    const jinja::value        first = args.get_pos(0);
    const jinja::value        by    = name == "sort" ? args.get_kwarg_or_pos("attribute", 3) : args.get_kwarg_or_pos("by", 2);
    const bool                by_value = jinja::is_val<jinja::value_string>(by) && by->val_str.str() == "value";
    for (const auto & item : first->val_obj) {
        keys.push_back(by_value ? item.second : item.first);
    }
    for (const auto & item : first->val_arr) {
        jinja::value missing = jinja::mk_val<jinja::value_undefined>();
        const bool   inside  = !by->is_undefined() && is_container(item);
        if (by->is_undefined()) {
            keys.push_back(item);
        } else if (inside && (jinja::is_val<jinja::value_object>(item) || jinja::is_val<jinja::value_int>(by))) {
            keys.push_back(item->at(by, missing));
        } else if (inside) {
            throw std::runtime_error("sorting lists needs the number of an item as attribute");
        } else {
            keys.push_back(missing);
        }
    }
    check_order(keys);
}

static void check_call(const std::string & name, const jinja::func_args & args) {
    rendering->tick();
    if (args.count() == 0) {
        return;
    }
    if (name == "range") {
        check_range(args);
    } else if (name == "test_is_divisibleby") {
        if (args.count() > 1 && jinja::is_val<jinja::value_int>(args.get_pos(1)) && args.get_pos(1)->as_int() <= 0 &&
            args.get_pos(1)->as_int() >= -1) {
            throw std::runtime_error("divisibleby needs a number that is neither 0 nor -1");
        }
    } else if (name == "indent" || name == "tojson") {
        check_indent(name, args);
    } else if (name == "replace") {
        check_replace(args);
    } else if (name == "split" || name == "rsplit") {
        check_split(args);
    } else if (name == "join") {
        check_join(args);
    } else if (name == "format") {
        weight size;
        for (const auto & arg : args.get_args()) {
            size.add(arg);
        }
    } else if (name == "string") {
        weigh(args.get_pos(0));
    } else if (name == "sort" || name == "dictsort") {
        check_sort(name, args);
    } else if (name == "test_is_in") {
        if (args.count() > 1) {
            check_search(args.get_pos(0), args.get_pos(1));
        }
    } else if (name == "append") {
        if (args.count() > 1) {
            if (contains(args.get_pos(1), args.get_pos(0))) {
                throw std::runtime_error("a list cannot be put into itself");
            }
            check_insertion(args.get_pos(1), true);
        }
    }
}

// What a function has made.
static inline void check_result(const std::string & name, const jinja::value & result) {
    if (name == "dict" || name == "namespace") {
        weigh(result);
    }
    const bool fresh = name == "range" || name == "split" || name == "rsplit" || name == "items" || name == "dictsort";
    rendering->make(
        text_size(result) + (fresh ? VALUE_SIZE : 2 * sizeof(void *)) * result->val_arr.size() +
        VALUE_SIZE * result->val_obj.size());
}

// ---- reading a template

static constexpr size_t MAX_SOURCE     = 4u << 20;
static constexpr size_t MAX_EXPRESSION = 4096;  // tokens between {{ and }}, or {% and %}
static constexpr size_t MAX_BLOCKS     = 4096;  // statements that begin a block, {% elif %} included
static constexpr size_t MAX_NAMES      = 256;   // variables that are set: each loop and each macro copies them

static thread_local std::set<std::string> * names_set = nullptr;

static void note_name(const jinja::statement_ptr & assignee) {
    if (const auto * tuple = jinja::cast_stmt<jinja::tuple_literal>(assignee)) {
        for (const auto & one : tuple->val) {
            note_name(one);
        }
    } else if (const auto * one = jinja::cast_stmt<jinja::identifier>(assignee)) {
        names_set->insert(one->val);
        if (names_set->size() > MAX_NAMES) {
            throw limit_exceeded("the template sets more than " + std::to_string(MAX_NAMES) + " variables");
        }
    }
}

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

static void check_source(const std::string & source) {
    if (source.size() > MAX_SOURCE) {
        throw limit_exceeded(
            "the template has " + std::to_string(source.size()) + " bytes; up to " + std::to_string(MAX_SOURCE) + " are read");
    }
    // The lexer moves all that follows for each.
    if ((double) count(source, "\r\n") * (double) source.size() > MAX_SEARCH / 4) {
        throw limit_exceeded("the template has too many lines that end with \\r\\n");
    }
}

}  // namespace pyllm
