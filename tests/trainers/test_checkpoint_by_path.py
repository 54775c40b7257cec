"""Training a model that is named by the folder it was saved in."""

from datasets import Dataset

from llada import LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer


def test_a_folder_that_this_package_saved(golden_llada, tiny_tokenizer, tmp_path):
    folder = tmp_path / "saved"
    # saved, the checkpoint names no remote code any more, and trl asks for it
    LLaDAModelLM.from_pretrained(golden_llada.folder).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    args = LLaDASFTConfig(tmp_path / "run", max_steps=1, report_to="none", use_cpu=True, max_length=32)
    dataset = Dataset.from_dict({"prompt": ["2 + 2 ="], "completion": [" 4"]})
    trainer = LLaDASFTTrainer(model=str(folder), args=args, train_dataset=dataset)
    trainer.train()
    assert isinstance(trainer.model, LLaDAModelLM)
