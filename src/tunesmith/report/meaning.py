"""What a verdict means for the reader, in a sentence: the same on every page."""

from tunesmith.rundir.records.evaluation import Decision

MEANING: dict[Decision, str] = {
    "deploy": "The tuned model is better than every prompt that came near to it; how sure its worth is stands below.",
    "prompting is enough": "Tuning helps, but by less than you said would be worth it. Keep the prompt.",
    "not better": "Tuning gained nothing over the best prompt. Keep the prompt.",
    "too little data to tell": "The test part is too small to decide. Collect more rows before you trust either.",
    "not the model that was trained": "The exported file is not what was trained, so its answers say nothing of the training.",
    "not calibrated": "Nobody knows whether this judge judges as people do. Nothing is decided.",
    "not good enough": "Neither the tuned model nor a prompt reaches the score that you called good enough. Use neither yet.",
    "as good and cheaper": "The tuned model is about as good as the best prompt, and its calls pay for its training in time.",
    "may replace it": "The tuned model does as well as the one it is to replace. That no prompt would do is not shown.",
    "regression": "Tuning cost the model general skill. Fix that before you deploy it, whatever it gained.",
}
