"""Write the cards of published checkpoints: `python model_cards/make_cards.py`."""

from pathlib import Path

from hf_detr.checkpoints.published_checkpoints import make_published_card, published_checkpoints

for checkpoint in published_checkpoints():
    card = make_published_card(checkpoint)
    card.save(Path(__file__).parent / f"{checkpoint.name.split('/')[-1]}.md")
