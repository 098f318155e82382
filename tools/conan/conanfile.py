# SPDX-License-Identifier: Apache-2.0
"""Recipe for Conan 2: `conan create tools/conan`; docs/packaging.md says how to name LibTorch to it.

LibTorch, which Conan's own index lacks, and the small libraries are found or fetched by prefopt's
CMake, as without Conan: the recipe requires no package.
"""

import os
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load

SOURCES = ["CMakeLists.txt", "LICENSE", "THIRD_PARTY_NOTICES", "cmake/*", "include/*", "src/*"]


class Prefopt(ConanFile):
    name = "prefopt"
    description = "Preference optimization of language models in C++"
    license = "Apache-2.0"
    topics = ("llm", "dpo", "rlhf", "libtorch")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "with_command": [True, False]}
    default_options = {"shared": False, "with_command": False}

    @property
    def _project(self):
        return os.path.join(self.recipe_folder, os.pardir, os.pardir)

    def set_version(self):
        header = load(self, os.path.join(self._project, "include/prefopt/version.h"))
        self.version = re.search(r'PREFOPT_VERSION_STRING "(.+)"', header).group(1)

    def export_sources(self):
        for pattern in SOURCES:
            copy(self, pattern, self._project, self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["PREFOPT_BUILD_TESTS"] = False
        toolchain.cache_variables["PREFOPT_BUILD_EXAMPLES"] = False
        toolchain.cache_variables["PREFOPT_BUILD_CLI"] = bool(self.options.with_command)
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        # The package config that CMake installed names LibTorch, which Conan cannot.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["lib/cmake/prefopt"]
