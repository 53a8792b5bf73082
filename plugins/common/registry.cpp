// How the plugins come into TensorRT: by its loadLibrary, which calls `getCreators`; by themselves, when the library is
// loaded into a process that has a TensorRT; or when a program calls `edge_mrcnn_register_plugins`. Each way they are
// in the namespace edge_mrcnn. (NVIDIA's REGISTER_TENSORRT_PLUGIN puts them into the empty one, and does not load
// without TensorRT.)
#include <NvInferRuntime.h>

#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/creators.hpp"
#include "common/log.hpp"
#include "common/plugin.hpp"
#include "common/tensorrt.hpp"
#include "edge_mrcnn_plugins.h"

namespace edge_mrcnn {
namespace {

//! Which creators are in which registry because we put them there: TensorRT's loadLibrary refuses a library that has a
//! creator in the registry already, and loading the library is enough to put them there.
class Registrations {
public:
    //! Puts every creator into the registry; whether all are there now.
    bool add(trt::IPluginRegistry& registry) {
        std::lock_guard const lock(mutex_);
        bool all = true;
        for (auto* const creator : creators()) {
            if (registry.registerCreator(*creator, kNamespace)) {
                made_.emplace_back(&registry, creator);
            } else {
                auto& one = static_cast<trt::IPluginCreatorV3One&>(*creator);
                all = registry.getCreator(one.getPluginName(), kVersion, kNamespace) != nullptr && all;
            }
        }
        return all;
    }

    //! Takes back what was put anywhere.
    void withdraw() {
        std::lock_guard const lock(mutex_);
        for (auto const& [registry, creator] : made_)
            registry->deregisterCreator(*creator);
        made_.clear();
    }

    static std::vector<trt::IPluginCreatorInterface*> const& creators() {
        static std::vector<trt::IPluginCreatorInterface*> const all{
            &rpn_proposals_creator(), &pyramid_roi_align_creator(), &detection_nms_creator()};
        return all;
    }

private:
    std::mutex mutex_;
    std::vector<std::pair<trt::IPluginRegistry*, trt::IPluginCreatorInterface*>> made_;
};

Registrations& registrations() {
    static auto* const instance = new Registrations;  // TensorRT may ask after the end of main
    return *instance;
}

std::string explain_layout(TensorRt const& tensorrt) {
    auto const text = [](int32_t major, int32_t minor) { return std::to_string(major) + "." + std::to_string(minor); };
    bool const known = tensorrt.major != nullptr && tensorrt.minor != nullptr;
    return "built with the headers of TensorRT " + text(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR) +
           ", whose registry is not " + "that of " +
           (known ? text(tensorrt.major(), tensorrt.minor()) : "the one here") +
           "; load the library with TensorRT's loadLibrary, or build it again with the headers of this version";
}

//! In every TensorRT of this process, or in the one whose registry is given.
bool register_plugins(trt::IPluginRegistry* wanted, bool quietly) {
    bool found = false, all = true;
    for (auto const& tensorrt : find_tensorrt()) {
        if (wanted != nullptr && tensorrt.registry() != wanted) continue;
        found = true;
        if (tensorrt.has_layout_of_headers()) {
            all = registrations().add(*tensorrt.registry()) && all;
            continue;
        }
        all = false;
        if (!quietly) report_error("plugins", explain_layout(tensorrt).c_str());
    }
    if (found) return all;
    if (wanted != nullptr) return registrations().add(*wanted);  // linked in statically, or an engine's own
    if (!quietly) report_error("plugins", "no TensorRT is loaded in this process; give its registry");
    return false;
}

//! TensorRT's loadLibrary needs nothing of what fails here, so it is not reported.
[[maybe_unused]] bool const registered_on_load = [] {
    try {
        return register_plugins(nullptr, /*quietly=*/true);
    } catch (std::exception const&) {
        return false;
    }
}();

}  // namespace
}  // namespace edge_mrcnn

#define EDGE_MRCNN_EXPORT extern "C" __attribute__((visibility("default")))

//! Called by TensorRT's loadLibrary, which registers what it gets.
EDGE_MRCNN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    return edge_mrcnn::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
        edge_mrcnn::registrations().withdraw();
        auto const& creators = edge_mrcnn::Registrations::creators();
        count = static_cast<int32_t>(creators.size());
        return creators.data();
    });
}

//! Called by TensorRT's loadLibrary.
EDGE_MRCNN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { edge_mrcnn::set_logger_finder(finder); }

bool edge_mrcnn_register_plugins(void* registry) {
    return edge_mrcnn::guarded("edge_mrcnn_register_plugins", false, [&] {
        return edge_mrcnn::register_plugins(static_cast<nvinfer1::IPluginRegistry*>(registry), /*quietly=*/false);
    });
}
