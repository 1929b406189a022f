// What ggml asks before each step of the optimizer.
#pragma once

#include "ggml-opt.h"

namespace pyllm {

struct step_settings {
    float lr    = 0.0f;
    float beta1 = 0.0f;
    float beta2 = 0.0f;
    float eps   = 0.0f;
    float wd    = 0.0f;

    static ggml_opt_optimizer_params get(void * userdata) {
        const step_settings & self = *static_cast<const step_settings *>(userdata);
        ggml_opt_optimizer_params params;
        params.adamw.alpha = self.lr;
        params.adamw.beta1 = self.beta1;
        params.adamw.beta2 = self.beta2;
        params.adamw.eps   = self.eps;
        params.adamw.wd    = self.wd;
        params.sgd.alpha   = self.lr;
        params.sgd.wd      = self.wd;
        return params;
    }
};

}  // namespace pyllm
