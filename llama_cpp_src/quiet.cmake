# Included by CMake when llama.cpp's own project begins (CMAKE_PROJECT_llama.cpp_INCLUDE): its tree stays as it is.
#
# Two of its files print errors to stderr instead of logging them: a library must not print, and the words are wanted
# in the exception. They are compiled with a header that sends what goes to stderr into llama.cpp's log.
if(MSVC)
    set(PYLLM_FORCE_INCLUDE "/FI${CMAKE_CURRENT_LIST_DIR}/stderr_to_log.h")
else()
    set(PYLLM_FORCE_INCLUDE "-include;${CMAKE_CURRENT_LIST_DIR}/stderr_to_log.h")
endif()
cmake_language(DEFER CALL set_source_files_properties src/llama-grammar.cpp src/unicode.cpp
    TARGET_DIRECTORY llama PROPERTIES COMPILE_OPTIONS "${PYLLM_FORCE_INCLUDE}")
