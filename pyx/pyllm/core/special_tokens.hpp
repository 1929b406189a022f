// Where a text has special tokens, and which of those are to stay text.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pyllm {

struct special_token {
    std::string text;
    int32_t     id      = -1;
    bool        control = false;  // read only where special tokens are; others are read in any text
    bool        lstrip  = false;  // takes the white space before it, or after it
    bool        rstrip  = false;
};

// A piece of a text: a token, or the bytes from `begin` to `end`.
struct text_piece {
    int32_t token = -1;
    size_t  begin = 0;
    size_t  end   = 0;
};

class special_tokens {
  public:
    std::vector<special_token> tokens;

    void add(const std::string & text, int32_t id, bool control, bool lstrip, bool rstrip) {
        if (!text.empty()) {
            tokens.push_back({ text, id, control, lstrip, rstrip });
        }
    }

    // Longer ones win, as in llama.cpp.
    void sort() {
        std::stable_sort(tokens.begin(), tokens.end(), [](const special_token & a, const special_token & b) {
            return a.text.size() > b.text.size();
        });
    }

    // Divides a text as llama.cpp's tokenizer does, except that control tokens with a marked byte stay text.
    // Returns whether there were any.
    bool divide(const std::string & text, const std::string & marks, std::vector<text_piece> & pieces) const {
        bool               hidden = false;
        const size_t       npos   = std::string_view::npos;
        std::vector<size_t> marked(text.size() + 1, 0);  // how many marked bytes stand before
        for (size_t i = 0; i < text.size(); ++i) {
            marked[i + 1] = marked[i] + (marks[i] != 0);
        }
        pieces.clear();
        if (!text.empty()) {
            pieces.push_back({ -1, 0, text.size() });
        }
        for (const auto & special : tokens) {
            if (text.find(special.text) == npos) {
                continue;
            }
            std::vector<text_piece> next;
            for (const auto & piece : pieces) {
                if (piece.token >= 0) {
                    next.push_back(piece);
                    continue;
                }
                size_t begin = piece.begin, from = piece.begin;
                for (;;) {
                    const size_t at = std::string_view(text.data(), piece.end).find(special.text, from);
                    if (at == npos) {
                        break;
                    }
                    const size_t end = at + special.text.size();
                    if (special.control && marked[end] > marked[at]) {
                        hidden = true;
                        from   = at + 1;
                        continue;
                    }
                    size_t left = at;
                    while (special.lstrip && left > begin && std::isspace((unsigned char) text[left - 1])) {
                        --left;
                    }
                    if (left > begin) {
                        next.push_back({ -1, begin, left });
                    }
                    next.push_back({ special.id, at, end });
                    begin = end;
                    while (special.rstrip && begin < piece.end && std::isspace((unsigned char) text[begin])) {
                        ++begin;
                    }
                    from = begin;
                }
                if (begin < piece.end) {
                    next.push_back({ -1, begin, piece.end });
                }
            }
            pieces = std::move(next);
        }
        return hidden;
    }
};

}  // namespace pyllm
