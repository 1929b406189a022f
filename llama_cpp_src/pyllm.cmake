# Included by CMake when llama.cpp's own project begins (CMAKE_PROJECT_llama.cpp_INCLUDE): its tree stays as it is.
#
# Shared libraries get names of pyllm's own, libpyllm-llama.so and so on, without a version suffix. The dynamic linker
# identifies a library by its soname: under upstream's names a libggml-base.so.0 of another package, of the system or of
# LD_LIBRARY_PATH would be used in place of ours. Backend modules (libggml-cpu-haswell.so) keep upstream's names: they
# are loaded by absolute path, and ggml_backend_load_all_from_path() looks for files of these names.
function(pyllm_name_libraries)
    foreach(target ggml-base ggml llama llama-common mtmd)
        if(TARGET ${target})
            set_target_properties(${target} PROPERTIES OUTPUT_NAME pyllm-${target})
            set_property(TARGET ${target} PROPERTY VERSION)
            set_property(TARGET ${target} PROPERTY SOVERSION)
        endif()
    endforeach()
endfunction()
cmake_language(DEFER CALL pyllm_name_libraries)

# The inline and template variables of another llama.cpp in the process have the same symbols as ours. GCC marks them
# as unique, and the linker then merges them even between libraries that were loaded with RTLD_LOCAL. Calls inside one
# library do not go through the global scope, where another copy may stand that was loaded with RTLD_GLOBAL.
add_compile_options($<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    add_link_options(-Wl,-Bsymbolic-functions)
endif()

# Two of its files print errors to stderr instead of logging them: a library must not print, and the words are wanted
# in the exception. They are compiled with a header that sends what goes to stderr into llama.cpp's log. A third one is
# compiled with what older Vulkan headers lack.
function(pyllm_force_include target header)
    if(TARGET ${target})
        if(MSVC)
            set(option "/FI${PYLLM_HEADERS}/${header}")
        else()
            set(option "-include;${PYLLM_HEADERS}/${header}")
        endif()
        set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS "${option}")
    endif()
endfunction()
# Deferred calls are evaluated later, in another folder.
set(PYLLM_HEADERS "${CMAKE_CURRENT_LIST_DIR}")
cmake_language(DEFER CALL pyllm_force_include llama stderr_to_log.h src/llama-grammar.cpp src/unicode.cpp)
cmake_language(DEFER CALL pyllm_force_include ggml-vulkan vulkan_compat.h ggml/src/ggml-vulkan/ggml-vulkan.cpp)

# The RPC backend ends the process when a server is lost, in its own transport. Ours takes its place.
set(GGML_RPC_RDMA OFF CACHE BOOL "pyllm's transport is TCP" FORCE)
function(pyllm_replace_rpc_transport)
    if(TARGET ggml-rpc)
        get_target_property(folder ggml-rpc SOURCE_DIR)
        get_target_property(sources ggml-rpc SOURCES)
        list(FILTER sources EXCLUDE REGEX "transport.*\\.(cpp|h)$")
        set_property(TARGET ggml-rpc PROPERTY SOURCES ${sources} ${PYLLM_HEADERS}/rpc/transport.cpp)
        target_include_directories(ggml-rpc PRIVATE ${folder} ${PYLLM_HEADERS}/../pyx/pyllm/core)
    endif()
endfunction()
cmake_language(DEFER CALL pyllm_replace_rpc_transport)
cmake_language(DEFER CALL pyllm_force_include ggml-rpc rpc/module.h ggml/src/ggml-rpc/ggml-rpc.cpp)
