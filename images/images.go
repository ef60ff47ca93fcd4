// Package images holds the recipes of the templates that ship with Roost: a recipe.json and
// a customize.sh a folder.
package images

import (
	"embed"
	"encoding/json"
	"io/fs"
	"path"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
)

//go:embed base
var files embed.FS

// Names lists the recipes.
func Names() []string {
	found, err := fs.Glob(files, "*/recipe.json")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	for i, p := range found {
		found[i] = path.Dir(p)
	}
	return found
}

// Recipe finds a recipe by name.
func Recipe(name string) (image.Recipe, error) {
	var r image.Recipe
	data, err := files.ReadFile(path.Join(name, "recipe.json"))
	if err != nil {
		return r, fault.New(fault.NotFound, "find recipe", name, "Roost ships no such recipe").
			WithHint("there are: " + strings.Join(Names(), ", "))
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fault.Wrap(err, "read recipe", name)
	}
	script, err := files.ReadFile(path.Join(name, "customize.sh"))
	if err != nil {
		return r, fault.Wrap(err, "read recipe", name)
	}
	r.Customize = string(script)
	return r, r.Validate()
}
