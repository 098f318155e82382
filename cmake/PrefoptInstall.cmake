# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)

set(prefopt_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/prefopt")

install(TARGETS prefopt EXPORT prefoptTargets FILE_SET HEADERS)
install(EXPORT prefoptTargets NAMESPACE prefopt:: DESTINATION "${prefopt_package_dir}")
if(TARGET prefopt_cli AND PREFOPT_INSTALL_LIBTORCH)
  # All but the system's: LibTorch, its OpenMP, and the libraries of CUDA that it loads.
  install(TARGETS prefopt_cli
    RUNTIME_DEPENDENCIES
      POST_EXCLUDE_REGEXES "^/lib" "^/usr/lib" "libprefopt\\.so"
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}/prefopt"
    RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  # Their licenses ask to be passed on. A wheel has them next to its package.
  file(GLOB prefopt_libtorch_licenses
    "${PREFOPT_LIBTORCH_DIR}/../../../../torch-*.dist-info/licenses/LICENSE"
    "${PREFOPT_LIBTORCH_DIR}/../../../../torch-*.dist-info/licenses/NOTICE")
  install(FILES ${prefopt_libtorch_licenses} DESTINATION "${CMAKE_INSTALL_DOCDIR}/libtorch")
elseif(TARGET prefopt_cli)
  install(TARGETS prefopt_cli)
endif()
install(FILES LICENSE THIRD_PARTY_NOTICES DESTINATION "${CMAKE_INSTALL_DOCDIR}")

if(TARGET prefopt_arrow)
  install(TARGETS prefopt_arrow LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  if(PREFOPT_BUNDLE_ARROW)
    install(FILES ${PREFOPT_ARROW_LIBRARIES} DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  endif()
endif()

# The package is tied to the minor of LibTorch that it was built with: its ABI changes between them.
string(REGEX MATCH "^[0-9]+\\.[0-9]+" prefopt_libtorch_minor "${PREFOPT_LIBTORCH_VERSION}")
get_target_property(prefopt_library_type prefopt TYPE)
configure_file(cmake/prefoptConfig.cmake.in prefoptConfig.cmake @ONLY)
write_basic_package_version_file(prefoptConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/prefoptConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/prefoptConfigVersion.cmake"
  cmake/PrefoptLibTorch.cmake
  cmake/PrefoptTextLibraries.cmake
  DESTINATION "${prefopt_package_dir}")

# For tests/package/run, whose programs have to use the same LibTorch.
set(PREFOPT_LIBTORCH_DIR "${PREFOPT_LIBTORCH_DIR}" CACHE INTERNAL "Torch_DIR of this build")
