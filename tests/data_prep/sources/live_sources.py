"""What the tests of live sources share."""


class Waits(list):
    """Seconds that a source waited, without waiting them."""

    def __call__(self, seconds):
        self.append(seconds)
        yield


def take(batches, enough=10_000, most=200):
    """Posts and last position of ``batches`` (signs of life included), up to ``enough`` posts."""
    posts, position = [], None
    for _, fetched in zip(range(most), batches, strict=False):
        posts += fetched.posts
        position = fetched.position or position
        if len(posts) >= enough:
            break
    batches.close()
    return posts, position


def texts(posts):
    return [post.text for post in posts]
