// llama.cpp's converter of JSON schemas, with texts across the boundary.
#pragma once

#include <exception>
#include <string>

#include "json-schema-to-grammar.h"
#include "json.h"

namespace pyllm {

// What the converter throws is about the schema, and comes back as a text.
static inline std::string schema_to_grammar(const std::string & schema, bool force_gbnf, std::string & failure) {
    try {
        return json_schema_to_grammar(common_json::parse(schema), force_gbnf);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & e) {
        failure = e.what();
        return {};
    }
}

}  // namespace pyllm
