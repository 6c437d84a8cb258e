"""Putting a finished data set or model on the Hugging Face hub."""

from pathlib import Path

from backtranslation.logs import logger
from backtranslation.records import Row


class HubError(ValueError):
    """The hub does not take what is to be pushed; the message says which key or variable to look at."""


def push(files: list[Path], repo: str, kind: str, private: bool) -> Row:
    """Put `files`, all of one folder, into the repository `repo` (owner/name) in one commit; says where they are.

    `kind` is `dataset` or `model`. The repository is made where there is none, `private` or not; one that is there
    stays as visible as it is. The token is huggingface_hub's own affair: from HF_TOKEN, or of `hf auth login`.

    Raises HubError without a token, or when the hub refuses.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    key = f"release.push.{kind}: {repo}"
    if huggingface_hub.get_token() is None:
        raise HubError(f"{key} needs a token that may write; set the variable HF_TOKEN")
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            folder_path=files[0].parent,
            allow_patterns=[path.name for path in files],
            commit_message="Made by instruction backtranslation",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise HubError(
                f"{key} cannot be written with this token (status {status}); the owner must be you or an "
                "organisation of yours, and the token must have the right to write"
            ) from error
        raise HubError(f"{key} was not taken by the hub (status {status})") from error
    except Exception as error:  # no network, in the many ways that the client reports it
        raise HubError(f"{key} could not be pushed ({type(error).__name__})") from error
    logger.info("pushed %d files to %s", len(files), url)
    return {"repo": repo, "url": str(url), "commit": commit.oid, "files": sorted(path.name for path in files)}
