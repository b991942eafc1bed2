# Read by CMake when it comes to llama.cpp (see the Makefile): its helpers for command-line tools, half of all that would be
# compiled, are not built. llama-cpp-python switches them on and offers no key to leave them out.
set(LLAMA_BUILD_COMMON OFF)

# gcc (12 among its versions) tells its optimizer that AMX tiles are configured from 8 bytes where they are from 64. llama.cpp
# then loads a configuration half of which was never written, and dies by SIGSEGV (ggml-org/llama.cpp#20824, #26954).
include(CheckCXXCompilerFlag)
foreach(extension amx-tile amx-int8 amx-bf16)
  string(MAKE_C_IDENTIFIER "HAS_NO_${extension}" supported)
  check_cxx_compiler_flag("-mno-${extension}" ${supported})
  if(${supported})
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-mno-${extension}>")
  endif()
endforeach()
