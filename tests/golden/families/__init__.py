"""The procedure of each family: `run(case, workbench, monkeypatch)` feeds the case's inputs to the project's parts and
compares the outputs."""

from families import cameras, diffusion, guidance, networks, planes, rays, surface, texture, training

FAMILIES = {
    "camera": cameras.camera,
    "training_cameras": cameras.training_cameras,
    "mvdream_unet": networks.mvdream_unet,
    "mvdream_vae_schedule": networks.mvdream_vae_schedule,
    "richdreamer_unet": networks.richdreamer_unet,
    "stable_diffusion": networks.stable_diffusion,
    "generator": planes.generator,
    "generator_decode": planes.generator_decode,
    "field_query": planes.field_query,
    "inference_end_to_end": planes.inference_end_to_end,
    "inference_ddim": diffusion.inference_ddim,
    "training_recurrence": diffusion.training_recurrence,
    "regularization": diffusion.regularization,
    "importance_sampler": rays.importance_sampler,
    "volume_render_analytic": rays.volume_render_analytic,
    "volume_render_triplane": rays.volume_render_triplane,
    "patch_renderer": rays.patch_renderer,
    "mv_asd": guidance.one_teacher,
    "rd_asd": guidance.one_teacher,
    "sd_asd": guidance.one_teacher,
    "guidance_call": guidance.all_teachers,
    "guidance_call_parallel": guidance.all_teachers,
    "tables": guidance.tables,
    "mesh_rasterizer": surface.mesh_rasterizer,
    "marching_cubes": surface.marching_cubes,
    "mesh_export": surface.mesh_export,
    "background": texture.background,
    "adan": training.adan,
    "training_step": training.training_step,
}
