from show1_ray import Stage, StageSettings


class Brighten(Stage):
    """Adds `by` to every pixel."""

    class Settings(StageSettings):
        by: int = 10

    takes = {"video": "f h w c"}
    gives = {"video": "f h w c"}

    def run(self, clips, values):
        return [{"video": (v["video"].astype("int16") + self.settings.by).clip(0, 255).astype("uint8")} for v in values]
