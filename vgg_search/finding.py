"""A model by any of its names. (stub until the models branch lands)"""

from vgg_search.models.reuse import load as load
