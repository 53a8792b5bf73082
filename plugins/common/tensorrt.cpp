// `getPluginRegistry` is a weak symbol, which the loader fills in where TensorRT is in the process's global scope: in a
// program linked against it, and in one that preloads it. Python, DeepStream and Triton open TensorRT for themselves
// (RTLD_LOCAL), and no symbol of it can be seen from here: there it is looked up among the libraries that are loaded.
#include "common/tensorrt.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <string>

#include "common/log.hpp"

#pragma weak getPluginRegistry
#pragma weak getLogger
#pragma weak getInferLibMajorVersion
#pragma weak getInferLibMinorVersion

namespace edge_mrcnn {
namespace {

namespace trt = nvinfer1;

std::atomic<trt::ILoggerFinder*> logger_finder{nullptr};

template <typename Function>
void find_symbol(void* library, char const* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
}

int collect_tensorrt(dl_phdr_info* info, size_t /*size*/, void* paths) {
    std::string const path = info->dlpi_name != nullptr ? info->dlpi_name : "";
    auto const name = path.substr(path.rfind('/') + 1);
    if (name.rfind("libnvinfer", 0) == 0 || name.rfind("libtensorrt", 0) == 0) {
        static_cast<std::vector<std::string>*>(paths)->push_back(path);
    }
    return 0;
}

std::vector<TensorRt> find_loaded() {
    std::vector<std::string> paths;
    dl_iterate_phdr(collect_tensorrt, &paths);
    std::vector<TensorRt> found;
    for (auto const& path : paths) {
        void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr) continue;
        TensorRt one{};
        find_symbol(library, "getPluginRegistry", one.registry);
        find_symbol(library, "getLogger", one.logger);
        find_symbol(library, "getInferLibMajorVersion", one.major);
        find_symbol(library, "getInferLibMinorVersion", one.minor);
        dlclose(library);  // gives back what dlopen took, the library stays
        if (one.registry != nullptr) found.push_back(one);
    }
    return found;
}

enum class Layout { kUnknown, kTensorRt10, kTensorRt11 };

//! Of a version's registry and logger. TensorRT-RTX, whose major version is 1, changed with 1.5 (tried: 1.4 to 1.7).
Layout layout_of(int32_t major, int32_t minor) {
    if (major == 1) return minor < 5 ? Layout::kTensorRt10 : Layout::kTensorRt11;
    if (major < 10) return Layout::kUnknown;
    return major == 10 ? Layout::kTensorRt10 : Layout::kTensorRt11;
}

trt::ILogger* find_logger() {
    if (auto* const finder = logger_finder.load()) return finder->findLogger();
    for (auto const& tensorrt : find_tensorrt()) {
        if (tensorrt.logger != nullptr && tensorrt.has_layout_of_headers()) return tensorrt.logger();
    }
    return nullptr;
}

}  // namespace

bool TensorRt::has_layout_of_headers() const {
    if (major == nullptr || minor == nullptr) return false;
    Layout const here = layout_of(major(), minor());
    return here != Layout::kUnknown && here == layout_of(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
}

std::vector<TensorRt> find_tensorrt() {
    std::vector<TensorRt> found;
    if (&::getPluginRegistry != nullptr) {
        found.push_back({&::getPluginRegistry, &::getLogger, &::getInferLibMajorVersion, &::getInferLibMinorVersion});
    }
    for (auto const& one : find_loaded()) {
        auto const is_same = [&](TensorRt const& other) { return other.registry == one.registry; };
        if (std::none_of(found.begin(), found.end(), is_same)) found.push_back(one);
    }
    return found;
}

void set_logger_finder(trt::ILoggerFinder* finder) noexcept {
    try {
        auto const found = find_tensorrt();  // the finder's layout changed with the logger's
        auto const fits = [](TensorRt const& one) { return one.has_layout_of_headers(); };
        if (std::all_of(found.begin(), found.end(), fits)) logger_finder = finder;
    } catch (std::exception const&) {
        logger_finder = nullptr;
    }
}

void report_error(char const* where, char const* text) noexcept {
    try {
        std::string const line = std::string("edge_mrcnn ") + where + ": " + text;
        if (auto* const logger = find_logger()) {
            logger->log(trt::ILogger::Severity::kERROR, line.c_str());
            return;
        }
    } catch (std::exception const&) {
        // without memory for the line or a logger, what is left says it
    }
    std::fprintf(stderr, "edge_mrcnn %s: %s\n", where, text);
}

}  // namespace edge_mrcnn
