/* Preprocessed (never compiled) to ask a host compiler who it is. features.h is the C library's:
   a compiler without its headers fails here as it would in a real build. */
#include <features.h>
#ifdef __clang_major__
vllm_doctor family clang __clang_major__ __clang_minor__
#else
vllm_doctor family gcc __GNUC__ __GNUC_MINOR__
#endif
#ifdef __GLIBC__
vllm_doctor glibc glibc __GLIBC__ __GLIBC_MINOR__
#endif
