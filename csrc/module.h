// An empty Python module: importing it loads the library, whose static initialisers register the ops.
#pragma once

#include <Python.h>

#define CRGAN_CONCAT_(a, b) a##b
#define CRGAN_CONCAT(a, b) CRGAN_CONCAT_(a, b)
#define CRGAN_STRING_(a) #a
#define CRGAN_STRING(a) CRGAN_STRING_(a)

PyMODINIT_FUNC CRGAN_CONCAT(PyInit_, TORCH_EXTENSION_NAME)() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, CRGAN_STRING(TORCH_EXTENSION_NAME), nullptr, -1};
  return PyModule_Create(&module);
}
