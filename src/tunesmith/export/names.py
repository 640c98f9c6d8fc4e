"""How the files of an export are called, and which of them are deployed."""

from tunesmith.recipe import Recipe

LORA = "LoRA"  # the form of an adapter beside its base, among the names of file types


def gguf_name(run: str, file_type: str) -> str:
    """File of the merged model in a llama.cpp type."""
    return f"{run}-{file_type}.gguf"


def base_name(run: str, file_type: str) -> str:
    """File of the base in a llama.cpp type; ``gguf`` is the file that it came in, with another template."""
    return f"{run}-base.gguf" if file_type == "gguf" else f"{run}-base-{file_type}.gguf"


def lora_name(run: str) -> str:
    """File of the adapter."""
    return f"{run}-lora.gguf"


def base_file(recipe: Recipe) -> str:
    """The GGUF that an adapter is applied to: the recipe's own model, absolute, or a name in the export."""
    return recipe.model if recipe.serves_own_file else base_name(str(recipe.name), recipe.base_type)


def deployed_form(recipe: Recipe) -> str:
    """Name of the form that the recipe deploys, as parity lists it."""
    return LORA if recipe.deploys_adapter else recipe.export.gguf[-1]


def deployed_files(recipe: Recipe, is_prompt: bool = False) -> tuple[str, str | None]:
    """What llama.cpp is given: the model, seen from ``export/`` (or absolute), and the adapter on it.

    Args:
        is_prompt: the base that a prompt is asked of, in the same file type.
    """
    if recipe.deploys_adapter:
        return base_file(recipe), None if is_prompt else lora_name(str(recipe.name))
    name = base_name if is_prompt else gguf_name
    return name(str(recipe.name), recipe.export.gguf[-1]), None
