"""Memory, step time and layout of a training run, predicted before a GPU is allocated; see README.md.

In reading order: `shapes` has what determines a model's cost; `planned_run` a run's config on a number of
GPUs, with the sizes that follow from it; `memory` the bytes on a GPU of each pipeline stage, and the check
before a training run; `machine` the GPU's data sheet, the fitted constants and the rates they give;
`step_time` the seconds of a step by term; `search` all layouts that fit, ranked.
"""
