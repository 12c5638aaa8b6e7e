"""Everything that setup needs to know stands in settings.ini."""
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class WithoutSolutions(build_py):
    "The wheel carries the student's edition of the lessons."

    def run(self):
        super().run()
        lessons = Path(self.build_lib) / "ft_course/lessons"
        if lessons.exists():  # an editable install has none
            sys.path.insert(0, str(HERE))
            from ft_course.teach.editions import student

            shutil.rmtree(lessons)
            student(HERE / "nbs", lessons)


config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("offline", "lab", "site", "tests", "dev")}
extras["dev"] = sum(extras.values(), [])

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    classifiers=["Intended Audience :: Education", "Programming Language :: Python :: 3",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    python_requires=f">={cfg['min_python']}",
    packages=[*find_packages(include=["ft_course", "ft_course.*"]), "ft_course.lessons", "ft_course.results"],
    package_dir={"ft_course.lessons": "nbs", "ft_course.results": "results"},  # the wheel carries notebooks and numbers
    package_data={"ft_course": ["corpora/*/*"], "ft_course.lessons": ["*.ipynb", "*/*.ipynb"],
                  "ft_course.results": ["*.json", "*.svg"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    cmdclass={"build_py": WithoutSolutions},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
