# Declarations of common/chat.h: the parts of llama.cpp's chat support that core/chat.pyx reads. It is C++, and no part
# of llama.cpp's public interface. What it takes to call it is in core/chat.hpp.

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

cdef extern from "chat.h" nogil:
    cdef cppclass common_grammar_trigger:
        int type
        string value
        int32_t token

    cdef cppclass common_chat_tool_call:
        string name
        string arguments
        string id

    cdef cppclass common_chat_msg:
        string role
        string content
        vector[common_chat_tool_call] tool_calls
        string reasoning_content

    cdef cppclass common_chat_msg_diff:
        string reasoning_content_delta
        string content_delta
        size_t tool_call_index
        common_chat_tool_call tool_call_delta

    cdef cppclass common_chat_params:
        int format
        string prompt
        string grammar
        bool grammar_lazy
        string generation_prompt
        string parser
        bool supports_thinking
        string thinking_start_tag
        vector[string] thinking_end_tags
        vector[common_grammar_trigger] grammar_triggers
        vector[string] preserved_tokens
        vector[string] additional_stops
