"""The HTTP edge: each module makes one router from its collaborators."""
