"""The forms in which a model is deployed, in the order in which they are written.

A new form is a file of this folder and a line here.
"""

from tunesmith.export.forms.base_gguf import BASE_GGUF
from tunesmith.export.forms.form import Form
from tunesmith.export.forms.gguf import GGUF
from tunesmith.export.forms.lora_gguf import LORA_GGUF
from tunesmith.export.forms.merged import MERGED
from tunesmith.export.forms.vllm_adapter import VLLM_ADAPTER

FORMS: tuple[Form, ...] = (MERGED, VLLM_ADAPTER, GGUF, BASE_GGUF, LORA_GGUF)
