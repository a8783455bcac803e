"""Write the head of a model card, which the Hugging Face Hub reads: YAML between two lines of dashes."""

import re

import yaml

# Data sets that the Hub has, by their names here; folders of ImageNet's form need not be of ImageNet.
ON_THE_HUB = {
    'cifar10': 'uoft-cs/cifar10',
    'cifar100': 'uoft-cs/cifar100',
    'imagenet': 'ILSVRC/imagenet-1k',
}
TASK = 'image-classification'


def head(card: dict) -> str:
    """Return the lines of a card's head, the dashes included.

    The fields are those of https://huggingface.co/docs/hub/model-cards. Whose weights they are, and under
    which license, is not known here.
    """
    data, recipe, scores = card['data'], card['training'], card['accuracy']
    dataset = ON_THE_HUB.get(data['name'].partition(':')[0])
    if data['name'].startswith('imagenet:') and not _is_imagenet(data['classes']):
        dataset = None
    methods = [recipe[field] for field in ('coupling', 'view') if recipe[field] != 'none']
    words = [word for names in (recipe['network'], recipe['loss'], *methods) for word in names.split('+')]
    fields: dict = {
        'license': 'unknown',
        'library_name': 'jaxcifar',
        'pipeline_tag': TASK,
        'tags': list(dict.fromkeys(['jax', card['format'], *(w for w in words if w != 'none')])),
    }
    if dataset:
        fields['datasets'] = [dataset]
    if scores:
        fields['metrics'] = ['accuracy']
        name = data['name'].rpartition(':')[2]
        fields['model-index'] = [
            {
                'name': f'{recipe["network"]} for {name}',
                'results': [
                    {
                        'task': {'type': TASK},
                        'dataset': {'name': name, 'type': dataset or name, 'split': scores['split']},
                        'metrics': _metrics(scores),
                    }
                ],
            }
        ]
    # Keys in this order; names of classes and files may be in any script.
    return f'---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---'


def _is_imagenet(classes: list[str]) -> bool:
    """Return whether these are as many classes as ImageNet has, named by their numbers in WordNet."""
    return len(classes) == 1000 and all(re.fullmatch(r'n\d{8}', name) for name in classes)


def without_head(card: str) -> str:
    """Return a card as people read it."""
    return card.split('---\n', 2)[-1]


def _metrics(scores: dict) -> list[dict]:
    """Return the accuracies that were measured, as fractions of four digits."""
    several = len(scores['members']) > 1
    names = {
        'mean': 'accuracy, mean of the members' if several else 'accuracy',
        'fused': 'accuracy, fused',
        'ensemble': 'accuracy, ensemble',
    }
    return [
        {'type': 'accuracy', 'name': name, 'value': round(float(scores[key]), 4)}
        for key, name in names.items()
        if scores[key] is not None
    ]
