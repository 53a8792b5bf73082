// The symbols that TensorRT's Python bindings take from its libraries. With these the bindings import where no TensorRT
// is, and their classes can be looked at; nothing can be made with them.
#include <stddef.h>

void* createInferBuilder_INTERNAL(void) { return NULL; }
void* createInferRefitter_INTERNAL(void) { return NULL; }
void* createInferRuntime_INTERNAL(void) { return NULL; }
void* createNvOnnxParserRefitter_INTERNAL(void) { return NULL; }
void* createNvOnnxParser_INTERNAL(void) { return NULL; }
void* getBuilderPluginRegistry(void) { return NULL; }
void* getPluginRegistry(void) { return NULL; }
int getInferLibVersion(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 1; }
