# Read by CMake when it comes to llama.cpp (see the Makefile): its helpers for command-line tools, half of all that would be
# compiled, are not built. llama-cpp-python switches them on and offers no key to leave them out.
set(LLAMA_BUILD_COMMON OFF)
