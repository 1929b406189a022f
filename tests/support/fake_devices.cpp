// Devices that are none: their memory is that of the host, as much of it as FAKE_DEVICES says, and they compute with
// the CPU's backend. For tests of what happens where a model and a device do not go together.
//
//     FAKE_DEVICES=100,60    two devices, with 100 and 60 MiB
//     FAKE_FAULT=crash       what a broken driver does when it is started: crash, exit, hang, throw, null
//     FAKE_FAULT=...-device  the same when a device is started
//     FAKE_MARKER=file       gets the number of each process that loads the module

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

#include "ggml-backend-impl.h"

namespace {

struct Device {
    ggml_backend_device device;
    ggml_backend_buffer_type buffer_type;
    std::string name;
    size_t total = 0;
    size_t used  = 0;
};

std::vector<Device *> devices;
ggml_backend_reg registry;

Device * of(ggml_backend_dev_t device) { return static_cast<Device *>(device->context); }
Device * of(ggml_backend_buffer_type_t type) { return static_cast<Device *>(type->context); }

struct Memory {
    Device * device;
    void * base;
    size_t size;
};

Memory * memory(ggml_backend_buffer_t buffer) { return static_cast<Memory *>(buffer->context); }

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    Device * device = of(type);
    if (device->used + size > device->total) {
        return nullptr;
    }
    void * base = nullptr;
    if (posix_memalign(&base, 64, size + 64) != 0) {
        return nullptr;
    }
    device->used += size;
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = [](ggml_backend_buffer_t buffer) {
        Memory * mine = memory(buffer);
        mine->device->used -= mine->size;
        free(mine->base);
        delete mine;
    };
    iface.get_base = [](ggml_backend_buffer_t buffer) { return memory(buffer)->base; };
    iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t n) {
        memset(static_cast<char *>(tensor->data) + offset, value, n);
    };
    iface.set_tensor = [](ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t n) {
        memcpy(static_cast<char *>(tensor->data) + offset, data, n);
    };
    iface.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t n) {
        memcpy(data, static_cast<const char *>(tensor->data) + offset, n);
    };
    iface.clear = [](ggml_backend_buffer_t buffer, uint8_t value) {
        memset(memory(buffer)->base, value, buffer->size);
    };
    return ggml_backend_buffer_init(type, iface, new Memory{device, base, size}, size);
}

// One thread: more of them wait for each other at every single operation.
ggml_backend_t start_cpu() {
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    set_threads(cpu, 1);
    return cpu;
}

// True where the fault is one that the caller has to show.
bool fail(const char * where) {
    const char * text = getenv("FAKE_FAULT");
    const std::string fault = text ? text : "", end = where;
    if (fault == "crash" + end) {
        fprintf(stderr, "the driver is broken\n");
        raise(SIGSEGV);
    } else if (fault == "exit" + end) {
        _exit(3);
    } else if (fault == "hang" + end) {
        for (;;) {
            pause();
        }
    } else if (fault == "throw" + end) {
        throw std::runtime_error("the driver is too old");
    }
    return fault == "null" + end;
}

ggml_backend_t start(ggml_backend_dev_t device, const char *) {
    if (fail("-device")) {
        return nullptr;
    }
    static ggml_guid guid = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    ggml_backend_i iface = {};
    iface.get_name = [](ggml_backend_t backend) { return of(backend->device)->name.c_str(); };
    iface.free = [](ggml_backend_t backend) {
        ggml_backend_free(static_cast<ggml_backend_t>(backend->context));
        delete backend;
    };
    iface.graph_compute = [](ggml_backend_t backend, ggml_cgraph * graph) {
        return ggml_backend_graph_compute(static_cast<ggml_backend_t>(backend->context), graph);
    };
    return new ggml_backend{&guid, iface, device, start_cpu()};
}

void add(size_t megabytes) {
    Device * device = new Device;
    device->name = "FAKE" + std::to_string(devices.size());
    device->total = megabytes << 20;

    ggml_backend_buffer_type_i type = {};
    type.get_name = [](ggml_backend_buffer_type_t buffer_type) { return of(buffer_type)->name.c_str(); };
    type.alloc_buffer = allocate;
    type.get_alignment = [](ggml_backend_buffer_type_t) -> size_t { return 64; };
    device->buffer_type = {type, &device->device, device};

    ggml_backend_device_i iface = {};
    iface.get_name = [](ggml_backend_dev_t dev) { return of(dev)->name.c_str(); };
    iface.get_description = [](ggml_backend_dev_t) { return "a device that is none"; };
    iface.get_memory = [](ggml_backend_dev_t dev, size_t * free, size_t * total) {
        *free = of(dev)->total - of(dev)->used;
        *total = of(dev)->total;
    };
    iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    iface.get_props = [](ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
        *props = {};
        props->name = of(dev)->name.c_str();
        props->description = "a device that is none";
        props->memory_free = of(dev)->total - of(dev)->used;
        props->memory_total = of(dev)->total;
        props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    };
    iface.init_backend = start;
    iface.get_buffer_type = [](ggml_backend_dev_t dev) { return &of(dev)->buffer_type; };
    iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor *) { return true; };
    iface.supports_buft = [](ggml_backend_dev_t dev, ggml_backend_buffer_type_t type) {
        return type == &of(dev)->buffer_type;
    };
    device->device = {iface, &registry, device};
    devices.push_back(device);
}

}  // namespace

extern "C" ggml_backend_reg_t ggml_backend_init(void) {
    if (const char * file = getenv("FAKE_MARKER")) {
        FILE * marker = fopen(file, "a");
        fprintf(marker, "%d\n", static_cast<int>(getpid()));
        fclose(marker);
    }
    if (fail("")) {
        return nullptr;
    }
    if (devices.empty()) {
        const char * text = getenv("FAKE_DEVICES");
        for (char * rest = const_cast<char *>(text ? text : ""); *rest;) {
            add(strtoul(rest, &rest, 10));
            rest += *rest == ',';
        }
        registry.api_version = GGML_BACKEND_API_VERSION;
        registry.iface.get_name = [](ggml_backend_reg_t) { return "FAKE"; };
        registry.iface.get_device_count = [](ggml_backend_reg_t) { return devices.size(); };
        registry.iface.get_device = [](ggml_backend_reg_t, size_t i) { return &devices.at(i)->device; };
        registry.iface.get_proc_address = [](ggml_backend_reg_t, const char *) -> void * { return nullptr; };
    }
    return &registry;
}
