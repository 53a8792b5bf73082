// What TensorRT asks of a plugin, asked without TensorRT: library_probe LIBRARY < job. Reads lines
//
//   op RpnProposals
//   field strides ints 2 4 8          name, kind, count, values; kinds of Field::read
//   tensor in float16 hwc8 4 1 3 8 8  side, type, layout, rank, dimensions
//   enqueue                           with made-up addresses: 4096 for the first tensor, 8192 for the next, ...
//
// and prints what the creator and the plugin answer, as JSON. What they have to say to a logger goes to standard error.
// From a library made with recorded_kernels.cpp, `enqueue` gives the kernels' parameters as hexadecimal bytes.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <deque>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace trt = nvinfer1;

namespace {

struct Logger : trt::ILogger {
    void log(Severity severity, char const* text) noexcept override {
        std::cerr << "logged " << static_cast<int>(severity) << ": " << text << "\n";
    }
};

struct Finder : trt::ILoggerFinder {
    trt::ILogger* findLogger() override { return &logger; }
    Logger logger;
};

//! A field and its data.
struct Field {
    std::string name;
    std::vector<char> data;
    trt::PluginFieldType type{};
    int32_t length = 0;

    template <typename T>
    void read_numbers(std::istream& in, trt::PluginFieldType as) {
        type = as;
        for (int32_t i = 0; i < length; ++i) {
            double number = 0;
            in >> number;
            T const value = static_cast<T>(number);
            auto const* const bytes = reinterpret_cast<char const*>(&value);
            data.insert(data.end(), bytes, bytes + sizeof(T));
        }
    }

    void read(std::istream& in) {
        std::string kind;
        in >> name >> kind >> length;
        if (kind == "int" || kind == "ints") read_numbers<int32_t>(in, trt::PluginFieldType::kINT32);
        if (kind == "int64s") read_numbers<int64_t>(in, trt::PluginFieldType::kINT64);
        if (kind == "float" || kind == "floats") read_numbers<float>(in, trt::PluginFieldType::kFLOAT32);
        if (kind == "float64s") read_numbers<double>(in, trt::PluginFieldType::kFLOAT64);
        if (kind == "string" || kind == "string0") {
            std::string text;
            in >> text;
            type = trt::PluginFieldType::kCHAR;
            data.assign(text.begin(), text.end());
            if (kind == "string0") data.push_back('\0');
            length = static_cast<int32_t>(data.size());
        }
    }
};

trt::DynamicPluginTensorDesc read_tensor(std::istream& in) {
    static std::map<std::string, trt::DataType> const types{{"float32", trt::DataType::kFLOAT},
                                                            {"float16", trt::DataType::kHALF},
                                                            {"int32", trt::DataType::kINT32},
                                                            {"int8", trt::DataType::kINT8}};
    static std::map<std::string, trt::TensorFormat> const formats{{"linear", trt::TensorFormat::kLINEAR},
                                                                  {"hwc8", trt::TensorFormat::kHWC8},
                                                                  {"chw16", trt::TensorFormat::kCHW16}};
    std::string type, format;
    trt::Dims dims{};
    in >> type >> format >> dims.nbDims;
    for (int32_t i = 0; i < dims.nbDims; ++i)
        in >> dims.d[i];
    trt::DynamicPluginTensorDesc tensor{};
    tensor.desc.dims = tensor.min = tensor.max = tensor.opt = dims;
    tensor.desc.type = types.at(type);
    tensor.desc.format = formats.at(format);
    return tensor;
}

template <typename T>
void print_numbers(trt::PluginField const& field) {
    for (int32_t i = 0; i < field.length; ++i)
        std::cout << (i ? "," : "") << +static_cast<T const*>(field.data)[i];
}

//! [[name, type, [values]], ...]
void print_fields(char const* key, trt::PluginFieldCollection const& fields) {
    std::cout.precision(9);
    std::cout << "\"" << key << "\": [";
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        auto const& field = fields.fields[i];
        std::cout << (i ? ", " : "") << "[\"" << field.name << "\", " << static_cast<int>(field.type) << ", [";
        if (field.type == trt::PluginFieldType::kINT32) print_numbers<int32_t>(field);
        if (field.type == trt::PluginFieldType::kFLOAT32) print_numbers<float>(field);
        if (field.type == trt::PluginFieldType::kCHAR) print_numbers<signed char>(field);
        std::cout << "]]";
    }
    std::cout << "]";
}

struct Job {
    std::string op;
    std::deque<Field> fields;
    std::vector<trt::DynamicPluginTensorDesc> inputs, outputs;
    bool enqueue = false;

    explicit Job(std::istream& in) {
        for (std::string line, word; std::getline(in, line);) {
            std::istringstream words(line);
            words >> word;
            if (word == "op") words >> op;
            if (word == "enqueue") enqueue = true;
            if (word == "field") fields.emplace_back().read(words);
            if (word == "tensor") {
                words >> word;
                (word == "in" ? inputs : outputs).push_back(read_tensor(words));
            }
        }
    }
};

//! Types, layouts, workspace.
void print_tensors(trt::IPluginV3& plugin, Job const& job) {
    auto* const build =
        static_cast<trt::IPluginV3OneBuild*>(plugin.getCapabilityInterface(trt::PluginCapabilityType::kBUILD));
    auto const inputs = static_cast<int32_t>(job.inputs.size()), outputs = static_cast<int32_t>(job.outputs.size());
    std::vector<trt::DynamicPluginTensorDesc> all(job.inputs);
    all.insert(all.end(), job.outputs.begin(), job.outputs.end());
    std::cout << ", \"accepted\": [";
    for (int32_t i = 0; i < inputs + outputs; ++i) {
        std::cout << (i ? "," : "") << build->supportsFormatCombination(i, all.data(), inputs, outputs);
    }
    std::vector<trt::DataType> in_types, out_types(outputs);
    for (auto const& tensor : job.inputs)
        in_types.push_back(tensor.desc.type);
    int32_t const typed = build->getOutputDataTypes(out_types.data(), outputs, in_types.data(), inputs);
    std::cout << "], \"typed\": " << typed << ", \"types\": [";
    for (int32_t i = 0; i < outputs; ++i)
        std::cout << (i ? "," : "") << static_cast<int>(out_types[i]);
    std::cout << "], \"configured\": " << build->configurePlugin(job.inputs.data(), inputs, job.outputs.data(), outputs)
              << ", \"workspace\": " << build->getWorkspaceSize(job.inputs.data(), inputs, job.outputs.data(), outputs);
}

//! The status of a run by a copy that is attached to a context, and what the kernels would have got.
void print_enqueue(trt::IPluginV3& plugin, Job const& job, void* library) {
    std::vector<trt::PluginTensorDesc> in, out;
    std::vector<void const*> in_data;
    std::vector<void*> out_data;
    uintptr_t address = 0;
    for (auto const& tensor : job.inputs) {
        in.push_back(tensor.desc);
        in_data.push_back(reinterpret_cast<void*>(address += 4096));
    }
    for (auto const& tensor : job.outputs) {
        out.push_back(tensor.desc);
        out_data.push_back(reinterpret_cast<void*>(address += 4096));
    }
    auto* const workspace = reinterpret_cast<void*>(address + 4096);
    trt::IPluginV3* const attached =
        static_cast<trt::IPluginV3OneRuntime*>(plugin.getCapabilityInterface(trt::PluginCapabilityType::kRUNTIME))
            ->attachToContext(nullptr);
    auto* const runtime =
        static_cast<trt::IPluginV3OneRuntime*>(attached->getCapabilityInterface(trt::PluginCapabilityType::kRUNTIME));
    std::cout << ", \"enqueued\": "
              << runtime->enqueue(in.data(), out.data(), in_data.data(), out_data.data(), workspace, nullptr);
    if (auto const recorded = reinterpret_cast<char const* (*)()>(dlsym(library, "recorded_args"))) {
        std::cout << ", \"args\": \"" << recorded() << "\"";
    }
    delete attached;
}

void print_plugin(trt::IPluginV3& plugin) {
    auto* const core =
        static_cast<trt::IPluginV3OneCore*>(plugin.getCapabilityInterface(trt::PluginCapabilityType::kCORE));
    auto* const build =
        static_cast<trt::IPluginV3OneBuild*>(plugin.getCapabilityInterface(trt::PluginCapabilityType::kBUILD));
    trt::IPluginV3* const copy = plugin.clone();  // serialises the same
    auto* const runtime =
        static_cast<trt::IPluginV3OneRuntime*>(copy->getCapabilityInterface(trt::PluginCapabilityType::kRUNTIME));
    std::cout << ", \"name\": [\"" << core->getPluginName() << "\", \"" << core->getPluginVersion() << "\", \""
              << core->getPluginNamespace() << "\"], \"outputs\": " << build->getNbOutputs() << ", ";
    print_fields("serialised", *runtime->getFieldsToSerialize());
    delete copy;
}

trt::IPluginCreatorV3One* find_creator(void* library, std::string const& op) {
    int32_t count = 0;
    auto const get =
        reinterpret_cast<trt::IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    auto* const* const creators = get(count);
    for (int32_t i = 0; i < count; ++i) {
        auto* const creator = static_cast<trt::IPluginCreatorV3One*>(creators[i]);
        if (op == creator->getPluginName()) return creator;
    }
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    void* const library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (library == nullptr) {
        std::cerr << (argc == 2 ? dlerror() : "library_probe LIBRARY < job") << "\n";
        return 1;
    }
    Finder finder;
    reinterpret_cast<void (*)(trt::ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    Job const job(std::cin);
    auto* const creator = find_creator(library, job.op);
    if (creator == nullptr) return 1;
    std::vector<trt::PluginField> fields;
    for (auto const& field : job.fields) {
        fields.emplace_back(field.name.c_str(), field.data.data(), field.type, field.length);
    }
    trt::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    std::cout << "{";
    print_fields("declared", *creator->getFieldNames());
    trt::IPluginV3* const plugin = creator->createPlugin("node", &collection, trt::TensorRTPhase::kBUILD);
    std::cout << ", \"created\": " << (plugin != nullptr ? "true" : "false");
    if (plugin != nullptr) {
        print_plugin(*plugin);
        if (!job.inputs.empty()) print_tensors(*plugin, job);
        if (job.enqueue) print_enqueue(*plugin, job, library);
    }
    std::cout << "}\n";
    delete plugin;
    return 0;
}
