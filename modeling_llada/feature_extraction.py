"""The stock `feature-extraction` pipeline, which takes the first output of a model: here states, not logits."""

from transformers import FeatureExtractionPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_base import MaskedDiffusionConfig


class StatesPipeline(FeatureExtractionPipeline):
    """
    The pipeline `"feature-extraction"` of transformers, for every model. Of a model of this package, which all Auto
    classes give with its head, it returns the last hidden states.
    """

    def _forward(self, model_inputs):
        model = self.model
        # other models have their own idea of what their first output is
        return (model.base_model if isinstance(model.config, MaskedDiffusionConfig) else model)(**model_inputs)


def register_feature_extraction() -> None:
    """Makes `pipeline("feature-extraction")` use it."""
    tasks = PIPELINE_REGISTRY.supported_tasks
    tasks["feature-extraction"] = {**tasks["feature-extraction"], "impl": StatesPipeline}


__all__ = ["StatesPipeline", "register_feature_extraction"]
