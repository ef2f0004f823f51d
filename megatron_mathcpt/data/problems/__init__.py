"""Word problems made from templates: question, step-by-step solution and exact answer, English and Chinese.

A template is data: how its numbers are drawn, the steps that solve it, and its wordings. The steps are
written into the solution and computed by one evaluator in exact fractions, so text and answer agree by
construction. Whether an instance is for training or for evaluation is decided by a hash of template and
numbers alone, so the two splits share no such pair in any language, wording or run.
"""
