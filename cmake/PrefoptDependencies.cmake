# SPDX-License-Identifier: Apache-2.0
# The other libraries: the system's, else fetched by tag. Only what is asked for is looked up.
# Eigen, zlib, Highway, PCRE2 and utf8proc stand in prefopt's link interface, so their targets are
# global; the others stay unseen by a project that adds prefopt, which may have its own copy.
include(FetchContent)
include(PrefoptTextLibraries)

# Fetches sources without running their build rules, which define options, tests and install rules
# that would become ours. Sets `<name>_SOURCE_DIR` for the caller.
macro(prefopt_fetch name repository tag)
  message(STATUS "prefopt: no ${name} on this system, using ${repository} ${tag}")
  FetchContent_Declare(${name}
    GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON SOURCE_SUBDIR not-built)
  FetchContent_MakeAvailable(${name})
endmacro()

# An imported target for a library of headers; the third argument may be GLOBAL.
function(prefopt_header_target target folder)
  add_library(${target} INTERFACE IMPORTED ${ARGN})
  target_include_directories(${target} SYSTEM INTERFACE "${folder}")
endfunction()

# Compiles `target` with the headers of an imported target that has nothing to link. Unlike a private
# link this leaves no trace in the interface of a static library.
function(prefopt_use_headers target)
  foreach(library IN LISTS ARGN)
    target_include_directories(${target} SYSTEM PRIVATE
      $<TARGET_PROPERTY:${library},INTERFACE_INCLUDE_DIRECTORIES>)
    target_compile_definitions(${target} PRIVATE
      $<TARGET_PROPERTY:${library},INTERFACE_COMPILE_DEFINITIONS>)
  endforeach()
endfunction()

macro(prefopt_need_eigen)
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 3.4 CONFIG QUIET GLOBAL)
  endif()
  if(NOT TARGET Eigen3::Eigen)
    prefopt_fetch(eigen https://gitlab.com/libeigen/eigen.git 3.4.0)
    prefopt_header_target(Eigen3::Eigen "${eigen_SOURCE_DIR}" GLOBAL)
  endif()
endmacro()

macro(prefopt_need_fmt)
  if(NOT TARGET fmt::fmt-header-only)
    find_package(fmt 9 CONFIG QUIET)
  endif()
  if(NOT TARGET fmt::fmt-header-only)
    prefopt_fetch(fmt https://github.com/fmtlib/fmt.git 11.0.2)
    prefopt_header_target(fmt::fmt-header-only "${fmt_SOURCE_DIR}/include")
    target_compile_definitions(fmt::fmt-header-only INTERFACE FMT_HEADER_ONLY=1)
  endif()
endmacro()

macro(prefopt_need_json)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3.11 CONFIG QUIET)
  endif()
  if(NOT TARGET nlohmann_json::nlohmann_json)
    prefopt_fetch(json https://github.com/nlohmann/json.git v3.11.3)
    prefopt_header_target(nlohmann_json::nlohmann_json "${json_SOURCE_DIR}/include")
  endif()
endmacro()

macro(prefopt_need_cli11)
  if(NOT TARGET CLI11::CLI11)
    find_package(CLI11 2.1 CONFIG QUIET)
  endif()
  if(NOT TARGET CLI11::CLI11)
    prefopt_fetch(cli11 https://github.com/CLIUtils/CLI11.git v2.4.2)
    prefopt_header_target(CLI11::CLI11 "${cli11_SOURCE_DIR}/include")
  endif()
endmacro()

macro(prefopt_need_zlib)
  if(NOT TARGET ZLIB::ZLIB)
    find_package(ZLIB QUIET GLOBAL)
  endif()
  if(NOT TARGET ZLIB::ZLIB)
    enable_language(C)
    prefopt_fetch(zlib https://github.com/madler/zlib.git v1.3.1)
    file(GLOB prefopt_zlib_sources "${zlib_SOURCE_DIR}/*.c")
    add_library(prefopt_zlib STATIC EXCLUDE_FROM_ALL ${prefopt_zlib_sources})
    target_compile_definitions(prefopt_zlib PRIVATE HAVE_UNISTD_H)
    set_target_properties(prefopt_zlib PROPERTIES POSITION_INDEPENDENT_CODE ON)
    prefopt_header_target(ZLIB::ZLIB "${zlib_SOURCE_DIR}" GLOBAL)
    target_link_libraries(ZLIB::ZLIB INTERFACE prefopt_zlib)
  endif()
endmacro()

macro(prefopt_need_highway)
  if(NOT TARGET hwy::hwy)
    find_package(hwy 1.0.3 CONFIG QUIET GLOBAL)
  endif()
  if(NOT TARGET hwy::hwy)
    prefopt_fetch(highway https://github.com/google/highway.git 1.2.0)
    add_library(prefopt_highway STATIC EXCLUDE_FROM_ALL
      "${highway_SOURCE_DIR}/hwy/abort.cc"
      "${highway_SOURCE_DIR}/hwy/aligned_allocator.cc"
      "${highway_SOURCE_DIR}/hwy/per_target.cc"
      "${highway_SOURCE_DIR}/hwy/targets.cc")
    target_include_directories(prefopt_highway PRIVATE "${highway_SOURCE_DIR}")
    set_target_properties(prefopt_highway PROPERTIES POSITION_INDEPENDENT_CODE ON)
    prefopt_header_target(hwy::hwy "${highway_SOURCE_DIR}" GLOBAL)
    target_link_libraries(hwy::hwy INTERFACE prefopt_highway)
  endif()
endmacro()

macro(prefopt_need_protozero)
  if(NOT TARGET protozero::protozero)
    find_path(prefopt_protozero_include protozero/pbf_writer.hpp)
    mark_as_advanced(prefopt_protozero_include)
    if(prefopt_protozero_include)
      prefopt_header_target(protozero::protozero "${prefopt_protozero_include}")
    else()
      prefopt_fetch(protozero https://github.com/mapbox/protozero.git v1.7.1)
      prefopt_header_target(protozero::protozero "${protozero_SOURCE_DIR}/include")
    endif()
  endif()
endmacro()

# The library of 8-bit units alone, from the files that PCRE2 keeps for builds without its own rules.
macro(prefopt_need_pcre2)
  prefopt_find_pcre2()
  if(NOT TARGET PCRE2::8BIT)
    enable_language(C)
    prefopt_fetch(pcre2 https://github.com/PCRE2Project/pcre2.git pcre2-10.42)
    set(prefopt_pcre2_dir "${CMAKE_CURRENT_BINARY_DIR}/pcre2")
    configure_file("${pcre2_SOURCE_DIR}/src/pcre2.h.generic" "${prefopt_pcre2_dir}/pcre2.h" COPYONLY)
    configure_file("${pcre2_SOURCE_DIR}/src/config.h.generic" "${prefopt_pcre2_dir}/config.h" COPYONLY)
    configure_file("${pcre2_SOURCE_DIR}/src/pcre2_chartables.c.dist"
      "${prefopt_pcre2_dir}/pcre2_chartables.c" COPYONLY)
    set(prefopt_pcre2_sources "${prefopt_pcre2_dir}/pcre2_chartables.c")
    foreach(part auto_possess compile config context convert dfa_match error extuni find_bracket
        jit_compile maketables match match_data newline ord2utf pattern_info script_run serialize
        string_utils study substitute substring tables ucd valid_utf xclass)
      list(APPEND prefopt_pcre2_sources "${pcre2_SOURCE_DIR}/src/pcre2_${part}.c")
    endforeach()
    add_library(prefopt_pcre2 STATIC EXCLUDE_FROM_ALL ${prefopt_pcre2_sources})
    target_include_directories(prefopt_pcre2 PRIVATE "${prefopt_pcre2_dir}" "${pcre2_SOURCE_DIR}/src")
    target_compile_definitions(prefopt_pcre2 PRIVATE
      HAVE_CONFIG_H PCRE2_CODE_UNIT_WIDTH=8 PCRE2_STATIC SUPPORT_UNICODE SUPPORT_JIT
      HAVE_MEMMOVE=1 HAVE_STRERROR=1)
    set_target_properties(prefopt_pcre2 PROPERTIES POSITION_INDEPENDENT_CODE ON)
    prefopt_header_target(PCRE2::8BIT "${prefopt_pcre2_dir}" GLOBAL)
    target_link_libraries(PCRE2::8BIT INTERFACE prefopt_pcre2)
  endif()
endmacro()

macro(prefopt_need_utf8proc)
  prefopt_find_utf8proc()
  if(NOT TARGET utf8proc::utf8proc)
    enable_language(C)
    prefopt_fetch(utf8proc https://github.com/JuliaStrings/utf8proc.git v2.9.0)
    add_library(prefopt_utf8proc STATIC EXCLUDE_FROM_ALL "${utf8proc_SOURCE_DIR}/utf8proc.c")
    target_compile_definitions(prefopt_utf8proc PUBLIC UTF8PROC_STATIC)
    set_target_properties(prefopt_utf8proc PROPERTIES POSITION_INDEPENDENT_CODE ON)
    prefopt_header_target(utf8proc::utf8proc "${utf8proc_SOURCE_DIR}" GLOBAL)
    target_link_libraries(utf8proc::utf8proc INTERFACE prefopt_utf8proc)
  endif()
endmacro()

# Catch2 3, else 2.13. Sets Catch2_VERSION.
macro(prefopt_need_catch2)
  if(NOT TARGET Catch2::Catch2)
    find_package(Catch2 3 CONFIG QUIET)
    if(NOT Catch2_FOUND)
      find_package(Catch2 2.13 CONFIG QUIET)
    endif()
  endif()
  if(NOT TARGET Catch2::Catch2)
    message(STATUS "prefopt: no Catch2 on this system, using v3.7.1")
    FetchContent_Declare(catch2
      GIT_REPOSITORY https://github.com/catchorg/Catch2.git GIT_TAG v3.7.1 GIT_SHALLOW ON SYSTEM)
    FetchContent_MakeAvailable(catch2)
    set(Catch2_VERSION 3.7.1)
  endif()
endmacro()
