// Forced into ggml-vulkan.cpp: Vulkan headers before 1.3.272, such as Debian 12's, lack one extension that it names.
#pragma once

#include "ggml-vulkan/ggml-vulkan-types.h"

#if VK_HEADER_VERSION < 272
namespace vk {
enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char *        layer;
    const char *        name;
    LayerSettingTypeEXT type;
    uint32_t            count;
    const void *        values;
};

// Chained into the creation of the instance, so it has the layout and the number of the real one.
struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & all) :
        count(static_cast<uint32_t>(all.size())), settings(all.data()) {}

    VkStructureType         type = static_cast<VkStructureType>(1000496000);
    const void *            next = nullptr;
    uint32_t                count;
    const LayerSettingEXT * settings;
};
}  // namespace vk
#endif
