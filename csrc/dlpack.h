// A dense map in pages of our own, handed to PyTorch as a DLPack capsule (the stable structs of
// github.com/dmlc/dlpack, version 0.8, written down again).
#pragma once
#include <Python.h>

#include <array>
#include <cstdint>
#include <new>

#include "cpu/kernels.h"
#include "pages.h"

namespace medseg {

namespace dlpack {

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t axes;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBFloat = 4;

}  // namespace dlpack

inline int64_t element_size(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// What a capsule owns: the struct PyTorch reads, the sizes it points to, and the pages.
struct Map {
  dlpack::Managed managed;
  int64_t shape[4], strides[4];
  Block block;

  Map(int dtype, const std::array<int64_t, 4>& sizes, bool channels_last, Block pages)
      : block(pages) {
    const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};  // densest axis first
    int64_t stride = 1;
    for (const int axis : order[channels_last]) {
      shape[axis] = sizes[axis];
      strides[axis] = stride;
      stride *= sizes[axis];
    }
    const uint8_t code = dtype == kBFloat16 ? dlpack::kBFloat : dlpack::kFloat;
    const auto bits = static_cast<uint8_t>(8 * element_size(dtype));
    managed.tensor = {block.at, dlpack::kCpu, 0, 4, code, bits, 1, shape, strides, 0};
    managed.context = this;
    managed.deleter = [](dlpack::Managed* m) { delete static_cast<Map*>(m->context); };
  }
  ~Map() { Pages::all().give(block); }  // any thread, with or without the GIL
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;
};

// An uninitialised dense (n, c, h, w) map; nullptr without an exception: there is no memory.
inline PyObject* map_capsule(int dtype, const std::array<int64_t, 4>& sizes, bool channels_last) {
  const int64_t count = sizes[0] * sizes[1] * sizes[2] * sizes[3];
  const Block block = Pages::all().take(static_cast<size_t>(count * element_size(dtype)));
  if (!block.at) return nullptr;
  auto* map = new (std::nothrow) Map(dtype, sizes, channels_last, block);
  if (!map) {
    Pages::all().give(block);
    return PyErr_NoMemory();
  }
  PyObject* capsule = PyCapsule_New(&map->managed, "dltensor", [](PyObject* self) {
    if (!PyCapsule_IsValid(self, "dltensor")) return;  // PyTorch took it over and renamed it
    auto* m = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(self, "dltensor"));
    m->deleter(m);
  });
  if (!capsule) delete map;
  return capsule;
}

}  // namespace medseg
