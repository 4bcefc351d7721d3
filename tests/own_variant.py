"""A detector that the package doesn't have: boxes as queries, and denoising while it trains."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForObjectDetection

from hf_detr import DetrConfig
from hf_detr.layers.attention import MultiHeadAttention
from hf_detr.layers.position_encoding import encode_points, make_position_encoding
from hf_detr.layers.transformer import TransformerLayer
from hf_detr.losses.classification import SigmoidFocalClassification
from hf_detr.losses.criterion import make_criterion
from hf_detr.models.detection_transformer import DetectionTransformer
from hf_detr.models.heads import MLP, make_box_head, make_class_head
from hf_detr.models.object_detector import ObjectDetector
from hf_detr.models.outputs import DecoderOutput
from hf_detr.models.training_queries import Queries, QuerySet, TrainingQueries
from hf_detr.ops.box_ops import boxes_from_deltas


class OwnConfig(DetrConfig):
    model_type = "own_variant"


class OwnDecoderLayer(TransformerLayer):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config, config.decoder_ffn_dim)
        width, num_heads = config.d_model, config.decoder_attention_heads
        self.self_attn = MultiHeadAttention(width, num_heads, config.attention_dropout)
        self.encoder_attn = MultiHeadAttention(width, num_heads, config.attention_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, states, places, memory, memory_places, pyramid, mask, return_weights):
        query, key = states + places, memory + memory_places
        update, weights = self.self_attn(query, query, states, mask, return_weights)
        states = self.add_and_norm(states, update, self.norms[0])
        query = states + places
        update, cross = self.encoder_attn(query, key, memory, pyramid.mask, return_weights)
        return self.feed_forward(self.add_and_norm(states, update, self.norms[1])), weights, cross


class OwnDecoder(nn.Module):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        width, num_layers = config.d_model, config.decoder_layers
        self.layers = nn.ModuleList(OwnDecoderLayer(config) for _ in range(num_layers))
        self.norm, self.place = nn.LayerNorm(width), MLP(2 * width, width, width, num_layers=2)
        self.bbox_embed = make_box_head(width, size_bias=0.0)

    def forward(self, queries, memory, memory_places, pyramid, *asked_for: bool) -> DecoderOutput:
        states, boxes = queries.contents, queries.reference_points  # (B, Q, D), (B, Q, 4)
        trace, undetached = [(states, None, None)], []
        for layer in self.layers:
            undetached.append(boxes)
            places = self.place(encode_points(boxes.detach(), states.shape[-1], temperature=20))
            memories = memory, memory_places, pyramid
            states, *weights = layer(states, places, *memories, queries.mask, asked_for[1])
            trace.append((states, *weights))
            boxes = boxes_from_deltas(self.bbox_embed(self.norm(states)), boxes.detach())
        detached, undetached = tuple(box.detach() for box in undetached), tuple(undetached)
        boxes = {"reference_points": detached, "undetached_reference_points": undetached}
        return DecoderOutput.from_trace(trace, self.norm, *asked_for, **boxes)


class OwnModel(DetectionTransformer):
    config_class = OwnConfig
    _keys_to_ignore_on_save = ["query_groups.embeddings.weight", "label_embeddings.weight"]
    _keys_to_ignore_on_load_missing = ["label_embeddings"]

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.input_projection = nn.Conv2d(self.backbone.num_channels[-1], config.d_model, 1)
        self.query_position_embeddings = nn.Embedding(config.num_queries, 4)
        self.label_embeddings = nn.Embedding(config.num_labels, config.d_model)
        self.decoder = OwnDecoder(config)
        self.post_init()

    @staticmethod
    def make_position_encoding(config: OwnConfig) -> nn.Module:
        return make_position_encoding("sine", config.d_model, temperature=20)

    def prepare_queries(self, embeddings: Tensor) -> Queries:
        contents = embeddings.new_zeros(*embeddings.shape[:2], self.config.d_model)
        return Queries(contents, reference_points=embeddings.sigmoid())

    def training_queries(self, labels, memory, position_embeddings, pyramid):
        counts = [len(label["boxes"]) for label in labels or ()]
        if not any(counts):
            return None
        names = pad_sequence([label["class_labels"] for label in labels], batch_first=True)
        boxes = pad_sequence([label["boxes"] for label in labels], batch_first=True)
        noised = (boxes * (1 + 0.2 * torch.randn_like(boxes))).clamp(0.01, 0.99)
        wrong = torch.randint_like(names, self.config.num_labels)
        names = torch.where(torch.rand(names.shape) < 0.2, wrong, names)
        contents = self.label_embeddings(names.to(memory.device))
        queries = Queries(contents, reference_points=noised.to(memory.device))
        matches = [(torch.arange(count), torch.arange(count)) for count in counts]
        mask = memory.new_ones(1, max(counts), self.num_queries + max(counts)).bool()
        return TrainingQueries(queries, mask, (QuerySet(max(counts), matches, suffix="_dn"),))


class OwnForObjectDetection(ObjectDetector):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        classification = SigmoidFocalClassification(config.num_labels, focal_alpha=0.25)
        self.model = OwnModel(config)
        self.class_head = make_class_head(config.d_model, classification)
        self.criterion = make_criterion(config, classification, class_weight=2)
        self.post_init()

    def predict(self, layer_states: Tensor, reference_points: tuple) -> tuple[Tensor, Tensor]:
        deltas = self.model.decoder.bbox_embed(layer_states)
        boxes = boxes_from_deltas(deltas, torch.stack(reference_points))
        return self.class_head(layer_states), boxes


AutoConfig.register(OwnConfig.model_type, OwnConfig)
AutoModelForObjectDetection.register(OwnConfig, OwnForObjectDetection)
