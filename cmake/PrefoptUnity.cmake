# SPDX-License-Identifier: Apache-2.0
# Headers are most of what a source costs to compile, so those of libraries are compiled once, and the
# sources of a folder a few at a time as one. Names in anonymous namespaces must differ within a
# folder.
option(PREFOPT_UNITY "Compile the sources of a folder together" ON)

# Groups the target's sources by folder, at most `size` of them together. Sources with compile options
# of their own, and those named after `size`, stay alone.
function(prefopt_unity target size)
  if(NOT PREFOPT_UNITY)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  list(SORT sources)
  set(folders "")
  foreach(source IN LISTS sources)
    if(NOT source MATCHES "\\.cpp$" OR source IN_LIST ARGN)
      continue()
    endif()
    get_source_file_property(options "${source}" COMPILE_OPTIONS)
    get_source_file_property(alone "${source}" SKIP_PRECOMPILE_HEADERS)
    if(options OR alone)
      continue()
    endif()
    string(REPLACE "${CMAKE_CURRENT_SOURCE_DIR}/" "" folder "${source}")
    get_filename_component(folder "${folder}" DIRECTORY)
    string(MAKE_C_IDENTIFIER "${folder}" folder)
    if(NOT folder IN_LIST folders)
      list(APPEND folders "${folder}")
      set(count_${folder} 0)
    endif()
    math(EXPR group "${count_${folder}} / ${size}")
    math(EXPR count_${folder} "${count_${folder}} + 1")
    set_source_files_properties("${source}" PROPERTIES UNITY_GROUP "${folder}_${group}")
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  # GCC takes a source that another one includes for a header.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
endfunction()

# Precompiles the headers for all of the target's sources but those with compile options of their own,
# which could not read the result.
function(prefopt_precompile target)
  target_precompile_headers(${target} PRIVATE ${ARGN})
  prefopt_read_precompiled(${target})
endfunction()

# Lets the target's sources read the headers that were precompiled for `other`, which takes the same
# definitions.
function(prefopt_reuse_precompiled target other)
  target_precompile_headers(${target} REUSE_FROM ${other})
  target_compile_definitions(${target} PRIVATE $<TARGET_PROPERTY:${other},COMPILE_DEFINITIONS>)
  prefopt_read_precompiled(${target})
endfunction()

function(prefopt_read_precompiled target)
  # For ccache.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    get_source_file_property(options "${source}" COMPILE_OPTIONS)
    if(options)
      set_source_files_properties("${source}" PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()
