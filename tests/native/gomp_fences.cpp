// Preloaded under the thread sanitizer, which does not see how an uncompiled-for-it OpenMP hands work to its threads:
// tells it that what happens before a parallel region happens before every thread's part, and that before what follows.
#include <dlfcn.h>

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);

struct Region {
  void (*body)(void*);
  void* data;
};

static void fenced(void* address) {
  const Region* region = static_cast<Region*>(address);
  __tsan_acquire(address);
  region->body(region->data);
  __tsan_release(address);
}

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  static const auto original = reinterpret_cast<decltype(&GOMP_parallel)>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(&region);
  original(fenced, &region, threads, flags);
  __tsan_acquire(&region);
}
}
