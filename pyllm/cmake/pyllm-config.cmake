# find_package(pyllm) gives the target pyllm::llama, with ggml and the headers, and
#   pyllm_INCLUDE_DIR   llama.h, ggml.h, pyllm_api.h
#   pyllm_LIBRARY_DIR   the shared libraries
#   pyllm_BACKEND_DIR   the backend modules: a program calls ggml_backend_load_all_from_path(pyllm_BACKEND_DIR) once
#                       before it loads a model. The definition PYLLM_BACKEND_DIR comes with the target.

get_filename_component(_pyllm_package "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(pyllm_INCLUDE_DIR "${_pyllm_package}/include")
set(pyllm_LIBRARY_DIR "${_pyllm_package}/lib")
set(pyllm_BACKEND_DIR "${pyllm_LIBRARY_DIR}")

foreach(_pyllm_name ggml-base ggml llama)
    if(NOT TARGET pyllm::${_pyllm_name})
        # Windows links to the import library, which is not part of the package.
        set(_pyllm_file
            "${pyllm_LIBRARY_DIR}/${CMAKE_SHARED_LIBRARY_PREFIX}pyllm-${_pyllm_name}${CMAKE_SHARED_LIBRARY_SUFFIX}")
        if(NOT EXISTS "${_pyllm_file}")
            set(pyllm_FOUND FALSE)
            set(pyllm_NOT_FOUND_MESSAGE "${_pyllm_file} does not exist: this pyllm was not built")
            return()
        endif()
        add_library(pyllm::${_pyllm_name} SHARED IMPORTED)
        set_target_properties(pyllm::${_pyllm_name} PROPERTIES
            IMPORTED_LOCATION "${_pyllm_file}"
            INTERFACE_INCLUDE_DIRECTORIES "${pyllm_INCLUDE_DIR}"
            INTERFACE_COMPILE_DEFINITIONS "PYLLM_BACKEND_DIR=\"${pyllm_BACKEND_DIR}\"")
    endif()
endforeach()
set_property(TARGET pyllm::ggml PROPERTY INTERFACE_LINK_LIBRARIES pyllm::ggml-base)
set_property(TARGET pyllm::llama PROPERTY INTERFACE_LINK_LIBRARIES "pyllm::ggml;pyllm::ggml-base")
