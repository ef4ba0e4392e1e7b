"""Training on several machines: a Kubeflow TrainJob that runs a step of a paper under torchrun."""
