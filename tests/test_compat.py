"""Where this project does by default what the original meant, not what it did."""

from miniature import assemble

from triplaneturbo.guidance import ScoreDistillationGuidance


def test_teachers_look_at_the_timesteps_of_their_part(tiny_world, tmp_path, monkeypatch):
    """The original computes these ranges and does not use them."""
    drawn = []
    sample_draws = ScoreDistillationGuidance.sample_draws

    def spy(self, *arguments):
        drawn.append(sample_draws(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(ScoreDistillationGuidance, "sample_draws", spy)
    system, data, trainer = assemble(tiny_world, tmp_path, "system.specifiy_guidance_timestep=v1")
    trainer.fit(system, datamodule=data)
    assert system.timesteps == [999, 749, 499, 249]
    parts = system.cfg.num_parts_training
    assert len(drawn) == parts * system.cfg.gradient_accumulation_steps
    for call, draws in enumerate(drawn):
        low, high = ((499, 999), (0, 499))[call % parts]
        for teacher in draws.teachers.values():
            assert teacher.t_min == low
            assert low <= teacher.t.min() <= teacher.t.max() < high
