// llama.cpp's chat support (common/chat.h) behind functions that take and give plain texts.
//
// Messages, tools and schemas come as JSON. Whatever llama.cpp throws for bad input comes back as a value that says
// whose fault it was, so that chat.pyx can raise an exception of the right class.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "chat_marks.hpp"
#include "deep_call.hpp"
#include "llama.h"

namespace pyllm {

static constexpr size_t CHAT_STACK           = 64u << 20;  // only what is used of it becomes memory
static constexpr size_t CHAT_STACK_PER_LEVEL = 8u << 10;   // for each level of nesting in what is given
static constexpr size_t SHALLOW              = 32;         // so deep, any stack will do

enum chat_fault : int {
    CHAT_OK           = 0,
    CHAT_BAD_TEMPLATE = 1,  // the template cannot be read, or refuses what it was given
    CHAT_BAD_ARGUMENT = 2,  // messages, tools, a schema: what came with the call
    CHAT_BAD_ANSWER   = 3,  // the text that a model wrote
};

struct chat_status {
    int         fault = CHAT_OK;
    std::string text;
};

// What ChatTemplates.apply was called with. Empty texts mean: not given.
struct chat_inputs {
    std::vector<std::string>           messages;  // JSON, one text for each message
    std::vector<std::string>           tools;     // JSON, one text for each tool
    std::string                        tool_choice;
    std::string                        json_schema;
    std::string                        grammar;
    std::string                        reasoning_format;
    std::map<std::string, std::string> kwargs;  // JSON by name
    int                                continuation          = 0;
    bool                               parallel_tool_calls   = false;
    bool                               add_generation_prompt = true;
    bool                               enable_thinking       = true;
    bool                               force_pure_content    = false;
    bool                               has_now               = false;
    double                             now                   = 0;
};

// How deep brackets are nested in JSON, and in JSON that is a text in it: what parses it recurses as often.
static inline size_t nesting(const std::string & text) {
    // A bracket in a text opens nothing, and where texts begin depends on what stands before: all brackets; those outside
    // of texts; those in texts, if a quotation mark before was none; those outside of texts in a text.
    size_t depths[4] = { 0, 0, 0, 0 }, deepest = 0, backslashes = 0;
    bool   in_text = false, in_inner_text = false;
    for (const char c : text) {
        if (c == '"') {
            if (backslashes % 2 == 0) {
                in_text       = !in_text;
                in_inner_text = false;
            } else if (backslashes % 4 == 1) {
                in_inner_text = !in_inner_text;
            }
        }
        backslashes         = c == '\\' ? backslashes + 1 : 0;
        const bool counts[] = { true, !in_text, in_text, !in_inner_text };
        const bool opens = c == '[' || c == '{', closes = c == ']' || c == '}';
        for (int i = 0; i < 4 && (opens || closes); ++i) {
            if (counts[i] && opens) {
                deepest = std::max(deepest, ++depths[i]);
            } else if (counts[i] && depths[i] > 0) {
                --depths[i];
            }
        }
    }
    return deepest;
}

// The same of a text that may be anything, with JSON in it: not less than it is.
static inline size_t brackets(const std::string & text) {
    return std::count(text.begin(), text.end(), '[') + std::count(text.begin(), text.end(), '{');
}

// Runs `work` on a stack of its own, in which a template may be rendered. What it throws becomes a status.
static inline void run_chat(
    chat_status & status, int fault, size_t depth, void (*enter)(), const std::function<void(int &, renderer &)> & work) {
    const size_t stack_size = CHAT_STACK + CHAT_STACK_PER_LEVEL * depth;
    status                  = chat_status();
    call_deep(stack_size, enter, [&] {
        const char here  = 0;
        renderer   state;
        state.stack      = &here;
        state.stack_size = stack_size;
        state.max_nesting += depth;
        rendering        = &state;
        try {
            work(fault, state);
        } catch (const std::bad_alloc &) {
            rendering = nullptr;
            throw;
        } catch (const std::exception & e) {
            status.fault = fault;
            status.text  = e.what();
        }
        rendering = nullptr;
        if (!state.exceeded.empty()) {
            status.fault = CHAT_BAD_TEMPLATE;
            status.text  = state.exceeded;
        }
    });
}

class chat_prompt {
  public:
    common_chat_params        params;
    common_chat_parser_params parsing;
    std::string               marks;       // for each byte of the prompt: 1 where it came in with the messages
    bool                      open = true;  // an answer follows

    void set(common_chat_params && result, const chat_inputs & inputs) {
        params                       = std::move(result);
        open                         = inputs.add_generation_prompt || inputs.continuation != COMMON_CHAT_CONTINUATION_NONE;
        parsing                      = common_chat_parser_params(params);
        parsing.reasoning_format     = common_reasoning_format_from_name(inputs.reasoning_format);
        parsing.reasoning_in_content = false;
        parsing.is_continuation      = inputs.continuation != COMMON_CHAT_CONTINUATION_NONE;
        parsing.parse_tool_calls     = true;
        if (!params.parser.empty()) {
            parsing.parser.load(params.parser);
        }
    }

    void parse(const std::string & text, bool partial, common_chat_msg & msg, chat_status & status, void (*enter)()) const {
        if (brackets(text) > SHALLOW && nesting(text) > SHALLOW) {
            run_chat(status, CHAT_BAD_ANSWER, brackets(text), enter, [&](int &, renderer &) {
                msg = common_chat_parse(text, partial, parsing);
            });
            return;
        }
        status = chat_status();
        try {
            msg = common_chat_parse(text, partial, parsing);
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const std::exception & e) {
            status.fault = CHAT_BAD_ANSWER;
            status.text  = e.what();
        }
    }
};

class chat_templates {
  public:
    common_chat_templates_ptr ptr;

    void init(
        const llama_model * model, const std::string & source, const std::string & bos, const std::string & eos,
        chat_status & status, void (*enter)()) {
        run_chat(status, CHAT_BAD_TEMPLATE, 0, enter, [&](int &, renderer &) {
            wrap_all_functions();
            if (!source.empty()) {
                check_template(source);
            } else {
                for (const char * name : { (const char *) nullptr, "tool_use" }) {
                    const char * text = llama_model_chat_template(model, name);
                    if (text) {
                        check_template(text);
                    }
                }
            }
            ptr = common_chat_templates_init(model, source, bos, eos);
            for (auto * one : { layout().template_default.get(), layout().template_tool_use.get() }) {
                if (one) {
                    wrap_program(one->prog);
                }
            }
        });
    }

    std::string source(const std::string & variant) const { return common_chat_templates_source(ptr.get(), variant); }

    bool is_explicit() const { return common_chat_templates_was_explicit(ptr.get()); }

    std::map<std::string, bool> caps() const { return common_chat_templates_get_caps(ptr.get()); }

    void supports_thinking(bool & answer, chat_status & status, void (*enter)()) const {
        run_chat(status, CHAT_BAD_TEMPLATE, 0, enter, [&](int &, renderer &) {
            answer = common_chat_templates_support_enable_thinking(ptr.get());
        });
    }

    void apply(const chat_inputs & given, chat_prompt & prompt, chat_status & status, void (*enter)()) const {
        size_t depth = nesting(given.json_schema);
        for (const auto * texts : { &given.messages, &given.tools }) {
            for (const auto & text : *texts) {
                depth = std::max(depth, nesting(text));
            }
        }
        for (const auto & item : given.kwargs) {
            depth = std::max(depth, nesting(item.second));
        }
        run_chat(status, CHAT_BAD_ARGUMENT, depth, enter, [&](int & fault, renderer & state) {
            common_chat_templates_inputs inputs;
            fill(given, inputs);
            for (const auto & item : given.kwargs) {
                state.names.push_back(item.first);
            }
            state.now = given.has_now ? (std::time_t) given.now : 0;
            fault     = CHAT_BAD_TEMPLATE;
            prompt.set(common_chat_templates_apply(ptr.get(), inputs), given);
            prompt.marks = mark(prompt.params, inputs, state.renders);
        });
    }

  private:
    const chat_templates_layout & layout() const {
        return *reinterpret_cast<const chat_templates_layout *>(ptr.get());
    }

    std::string mark(
        const common_chat_params & params, const common_chat_templates_inputs & inputs,
        const std::vector<marked_text> & renders) const {
        const std::string & bos = layout().add_bos ? layout().template_default->bos_tok : std::string();
        if (inputs.continue_final_message == COMMON_CHAT_CONTINUATION_NONE || inputs.messages.empty()) {
            return marks_of(params.prompt, renders, bos);
        }
        // The beginning of the answer is put behind what was rendered.
        const std::string & tail = params.generation_prompt;
        const size_t        base = params.prompt.size() - tail.size();
        const auto &        last = inputs.messages.back();
        std::string         marks(tail.size(), 0);
        const std::string   content = last.render_content();
        size_t              end     = tail.size();
        if (end >= content.size() && tail.compare(end - content.size(), content.size(), content) == 0) {
            end -= content.size();
            marks.replace(end, content.size(), content.size(), 1);
        }
        const std::string & reasoning = last.reasoning_content;
        const size_t        at        = reasoning.empty() ? std::string::npos : tail.rfind(reasoning, end - std::min(end, reasoning.size()));
        if (at != std::string::npos && at + reasoning.size() <= end) {
            marks.replace(at, reasoning.size(), reasoning.size(), 1);
        }
        return marks_of(params.prompt.substr(0, base), renders, bos) + marks;
    }

    static void fill(const chat_inputs & given, common_chat_templates_inputs & inputs) {
        for (size_t i = 0; i < given.messages.size(); ++i) {
            named("messages", i, [&] {
                auto one = common_chat_msgs_parse_oaicompat(common_json::array({ common_json::parse(given.messages[i]) }));
                inputs.messages.push_back(std::move(one.at(0)));
            });
        }
        for (size_t i = 0; i < given.tools.size(); ++i) {
            named("tools", i, [&] {
                auto one = common_chat_tools_parse_oaicompat(common_json::array({ common_json::parse(given.tools[i]) }));
                inputs.tools.push_back(std::move(one.at(0)));
            });
        }
        if (!given.json_schema.empty()) {
            try {
                common_json::parse(given.json_schema);
            } catch (const std::exception & e) {
                throw std::invalid_argument(std::string("json_schema is no JSON: ") + e.what());
            }
        }
        inputs.tool_choice            = common_chat_tool_choice_parse_oaicompat(given.tool_choice);
        inputs.parallel_tool_calls    = given.parallel_tool_calls;
        inputs.json_schema            = given.json_schema;
        inputs.grammar                = given.grammar;
        inputs.add_generation_prompt  = given.add_generation_prompt;
        inputs.continue_final_message = (common_chat_continuation) given.continuation;
        inputs.enable_thinking        = given.enable_thinking;
        inputs.reasoning_format       = common_reasoning_format_from_name(given.reasoning_format);
        inputs.chat_template_kwargs   = given.kwargs;
        inputs.force_pure_content     = given.force_pure_content;
        if (given.has_now) {
            // llama.cpp writes the date of today into these two, whatever `now` is.
            const std::time_t now = (std::time_t) given.now;
            inputs.now            = std::chrono::system_clock::from_time_t(now);
            inputs.chat_template_kwargs.emplace("datetime", date(now, "%b %d %Y"));
            inputs.chat_template_kwargs.emplace("date_string", date(now, "%d %b %Y"));
        }
    }

    static std::string date(std::time_t now, const char * format) {
        char text[64];
        text[std::strftime(text, sizeof(text), format, std::localtime(&now))] = 0;
        return std::string("\"") + text + "\"";
    }

    template <typename F> static void named(const char * what, size_t i, F && work) {
        try {
            work();
        } catch (const std::exception & e) {
            throw std::invalid_argument(std::string(what) + "[" + std::to_string(i) + "]: " + e.what());
        }
    }
};

static inline void compute_diffs(
    const common_chat_msg & before, const common_chat_msg & after, std::vector<common_chat_msg_diff> & diffs,
    chat_status & status) {
    status = chat_status();
    try {
        diffs = common_chat_msg_diff::compute_diffs(before, after);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & e) {
        status.fault = CHAT_BAD_ARGUMENT;
        status.text  = e.what();
    }
}

}  // namespace pyllm
