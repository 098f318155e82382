# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.25)
# Rooms of include/prefopt and src, from the lowest to the highest: a room includes only rooms that
# come before it, so no two of them include each other. docs/architecture.md draws them.
set(rooms
  core jinja math kernels files dist logps losses objectives exact testing data policy evaluation decoder train
  online report run lab cli)

set(faults "")
file(GLOB_RECURSE sources RELATIVE "${SOURCE_DIR}"
  "${SOURCE_DIR}/include/prefopt/*.h"
  "${SOURCE_DIR}/src/*.h" "${SOURCE_DIR}/src/*.cpp" "${SOURCE_DIR}/src/*.cu")
set(seen "")
foreach(source IN LISTS sources)
  string(REGEX REPLACE "^(include/prefopt|src)/" "" place "${source}")
  if(NOT place MATCHES "^([a-z]+)/")
    continue()  # what all rooms may include: error.h, options.h
  endif()
  set(room "${CMAKE_MATCH_1}")
  list(FIND rooms "${room}" own)
  if(own EQUAL -1)
    list(APPEND faults "${source}: expected a room that tests/headers/rooms.cmake lists")
    continue()
  endif()
  list(APPEND seen "${room}")
  file(READ "${SOURCE_DIR}/${source}" text)
  string(REGEX MATCHALL "# *include *\"[^\"]+" includes "${text}")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE "# *include *\"(prefopt/)?" "" include "${include}")
    if(NOT include MATCHES "^([a-z]+)/")
      continue()
    endif()
    list(FIND rooms "${CMAKE_MATCH_1}" other)
    if(other GREATER own)
      list(APPEND faults
        "${source}: expected rooms below '${room}' only, got ${include}")
    endif()
  endforeach()
endforeach()
foreach(room IN LISTS rooms)
  if(NOT room IN_LIST seen)
    list(APPEND faults "rooms.cmake: expected a folder '${room}', got none")
  endif()
endforeach()

# The step and the run stay files that are read at a sitting.
foreach(source src/train/trainer.cpp src/run/run.cpp)
  file(STRINGS "${SOURCE_DIR}/${source}" lines)
  list(LENGTH lines count)
  if(count GREATER_EQUAL 300)
    list(APPEND faults "${source}: expected less than 300 lines, got ${count}")
  endif()
endforeach()

if(faults)
  list(JOIN faults "\n  " faults)
  message(FATAL_ERROR "rooms:\n  ${faults}")
endif()
