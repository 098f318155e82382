# SPDX-License-Identifier: Apache-2.0
# How prefopt finds Arrow C++, which the module for Parquet and Arrow files is linked with. A build
# without it refuses such files, so nothing in here is an error.

set(PREFOPT_ARROW_MINIMUM 21)
set(PREFOPT_ARROW_WHEEL 26.0.1)

# Makes prefopt::arrow of the headers and libraries in the folder of a package pyarrow, whose
# libraries have no plain names to link by. Sets `result` to its version; empty where it has none.
function(prefopt_use_pyarrow folder result)
  set(${result} "" PARENT_SCOPE)
  file(GLOB arrow "${folder}/libarrow.so.*")
  file(GLOB parquet "${folder}/libparquet.so.*")
  set(config "${folder}/include/arrow/util/config.h")
  if(NOT arrow OR NOT parquet OR NOT EXISTS "${config}")
    return()
  endif()
  file(STRINGS "${config}" version REGEX "define ARROW_VERSION_STRING")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" version "${version}")
  if(version VERSION_LESS PREFOPT_ARROW_MINIMUM)
    return()
  endif()
  add_library(prefopt::arrow INTERFACE IMPORTED)
  target_include_directories(prefopt::arrow SYSTEM INTERFACE "${folder}/include")
  target_link_libraries(prefopt::arrow INTERFACE "${parquet}" "${arrow}")
  set(PREFOPT_ARROW_LIBRARIES "${parquet}" "${arrow}" PARENT_SCOPE)
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# The folder of the package pyarrow of the Python in use, without importing it; empty: none.
function(prefopt_python_pyarrow result)
  set(${result} "" PARENT_SCOPE)
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python)
    return()
  endif()
  execute_process(
    COMMAND "${python}" -c
      "import importlib.util as u; print(u.find_spec('pyarrow').submodule_search_locations[0])"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE status ERROR_QUIET)
  if(status EQUAL 0)
    set(${result} "${folder}" PARENT_SCOPE)
  endif()
endfunction()

# Puts the folder of the fetched package pyarrow into `result`; empty where it cannot be fetched. An
# interrupted fetch leaves nothing that could be taken for a whole one.
function(prefopt_fetch_pyarrow result)
  set(folder "${PREFOPT_DEPS_DIR}/pyarrow-${PREFOPT_ARROW_WHEEL}")
  set(${result} "${folder}/pyarrow" PARENT_SCOPE)
  file(MAKE_DIRECTORY "${PREFOPT_DEPS_DIR}")
  file(LOCK "${PREFOPT_DEPS_DIR}/pyarrow.lock" GUARD FUNCTION)
  if(EXISTS "${folder}")
    return()
  endif()
  set(${result} "" PARENT_SCOPE)
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python OR PREFOPT_ARROW_FETCH_FAILED)
    return()
  endif()
  message(STATUS "prefopt: fetching Arrow into ${folder} (62 MB: pyarrow==${PREFOPT_ARROW_WHEEL})")
  set(partial "${folder}.partial")
  file(REMOVE_RECURSE "${partial}")
  execute_process(
    COMMAND "${python}" -m pip install --quiet --no-input --disable-pip-version-check --no-deps
      --retries 1 --timeout 15 --only-binary :all: --target "${partial}" "pyarrow==${PREFOPT_ARROW_WHEEL}"
    RESULT_VARIABLE status ERROR_VARIABLE error)
  if(NOT status EQUAL 0)
    file(REMOVE_RECURSE "${partial}")
    set(PREFOPT_ARROW_FETCH_FAILED ON CACHE INTERNAL "Asked once for each build folder")
    message(STATUS "prefopt: pip could not fetch pyarrow: ${error}")
    return()
  endif()
  file(RENAME "${partial}" "${folder}")
  set(${result} "${folder}/pyarrow" PARENT_SCOPE)
endfunction()

# Makes prefopt::arrow of the Arrow that the user or the system has (Arrow_DIR, Parquet_DIR,
# CMAKE_PREFIX_PATH), else of the pyarrow of Python, else of the wheel fetched by name. Sets
# PREFOPT_ARROW_VERSION, empty where there is none, PREFOPT_ARROW_LIBRARIES, the files that the module
# loads, and PREFOPT_ARROW_FOLDERS, where they lie.
function(prefopt_find_arrow)
  set(PREFOPT_ARROW_LIBRARIES "")
  find_package(Arrow ${PREFOPT_ARROW_MINIMUM} CONFIG QUIET)
  find_package(Parquet ${PREFOPT_ARROW_MINIMUM} CONFIG QUIET)
  if(TARGET Arrow::arrow_shared AND TARGET Parquet::parquet_shared)
    set(version "${Arrow_VERSION}")
    set(origin "Arrow_DIR, CMAKE_PREFIX_PATH or the system")
    add_library(prefopt::arrow INTERFACE IMPORTED)
    target_link_libraries(prefopt::arrow INTERFACE Parquet::parquet_shared Arrow::arrow_shared)
    foreach(library IN ITEMS Parquet::parquet_shared Arrow::arrow_shared)
      get_target_property(file ${library} LOCATION)
      list(APPEND PREFOPT_ARROW_LIBRARIES "${file}")
    endforeach()
  else()
    prefopt_python_pyarrow(folder)
    set(origin "the Python in use")
    prefopt_use_pyarrow("${folder}" version)
    if(NOT version)
      prefopt_fetch_pyarrow(folder)
      set(origin "wheel fetched with pip")
      prefopt_use_pyarrow("${folder}" version)
    endif()
  endif()
  set(PREFOPT_ARROW_VERSION "${version}" PARENT_SCOPE)
  if(NOT version)
    message(STATUS "prefopt: no Arrow C++ ${PREFOPT_ARROW_MINIMUM} or later; Parquet and Arrow files "
      "will be refused")
    return()
  endif()
  message(STATUS "prefopt: Arrow ${version} from ${origin}")
  set(folders "")
  foreach(file IN LISTS PREFOPT_ARROW_LIBRARIES)
    get_filename_component(folder "${file}" DIRECTORY)
    list(APPEND folders "${folder}")
  endforeach()
  list(REMOVE_DUPLICATES folders)
  set(PREFOPT_ARROW_LIBRARIES "${PREFOPT_ARROW_LIBRARIES}" PARENT_SCOPE)
  set(PREFOPT_ARROW_FOLDERS "${folders}" PARENT_SCOPE)
endfunction()
