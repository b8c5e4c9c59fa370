package edges_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/failpoint/edges"
)

const root = "../../.."

// hit is a point where it stands; around is an edge whose points stand around the method of a port.
var (
	hit    = regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	around = regexp.MustCompile(`func \((\w+) \w+\) (\w+)\([^\n]*\{\n(?:[^\n}][^\n]*\n)*?[^\n]*\b(?:act|some|when|done|mark)\("([^"]+)"`)
)

// ports are what the types of ports.go stand for.
var ports = map[string]reflect.Type{
	"Intake": reflect.TypeFor[stepfleet.Intake](), "Claims": reflect.TypeFor[stepfleet.Claims](), "Keeper": reflect.TypeFor[stepfleet.Keeper](),
	"Ringer": reflect.TypeFor[stepfleet.Ringer](), "Listener": reflect.TypeFor[stepfleet.Listener](),
	"EventLog": reflect.TypeFor[stepfleet.EventLog](), "Gate": reflect.TypeFor[stepfleet.Gate](),
}

// reads are methods that change nothing, and after which nothing is changed.
var reads = []string{"Claims.Held", "Keeper.Orphans", "Keeper.CarriedRuns"}

// product returns the text of each of the product's Go files.
func product(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "e2e" || d.Name() == "bench") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		raw, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, root+"/")] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// isPort says whether the edge's points stand around a method.
func isPort(e edges.Edge) bool { return !strings.HasSuffix(e.Place, ".go") }

// Every point is where the list says, once, and nowhere else.
func TestEveryPointIsInItsPlace(t *testing.T) {
	placed := map[string][]string{} // files by point, of points in the middle of a function
	files := product(t)
	for name, text := range files {
		for _, m := range hit.FindAllStringSubmatch(text, -1) {
			placed[m[1]] = append(placed[m[1]], name)
		}
	}
	for _, e := range edges.All {
		if isPort(e) {
			continue
		}
		for _, point := range e.Points() {
			if got := placed[point]; !slices.Equal(got, []string{e.Place}) {
				t.Errorf("the point %s is in %v, and should be in %s, once", point, got, e.Place)
			}
			delete(placed, point)
		}
		text := files[e.Place]
		if strings.Index(text, `"`+e.Name+`.before"`) > strings.Index(text, `"`+e.Name+`.after"`) {
			t.Errorf("%s: %s.after stands before %s.before", e.Place, e.Name, e.Name)
		}
	}
	for point, files := range placed {
		t.Errorf("%v: the point %s is not in the list of internal/failpoint/edges", files, point)
	}
}

// Around each method stands the edge that the list says.
func TestEveryPortHasItsPoints(t *testing.T) {
	placed := map[string]string{} // methods by edge
	for _, m := range around.FindAllStringSubmatch(product(t)[edges.Ports], -1) {
		if other, twice := placed[m[3]]; twice {
			t.Errorf("%s: the edge %s stands around %s and %s", edges.Ports, m[3], other, m[2])
		}
		placed[m[3]] = m[2]
	}
	// A function, and no port.
	if !strings.Contains(product(t)[edges.Ports], `done("notify", func() error { return f(ctx, url, ended) })`) {
		t.Errorf("%s: no points stand around a notify", edges.Ports)
	}
	for _, e := range edges.All {
		port, method, _ := strings.Cut(e.Place, ".")
		switch {
		case !isPort(e) || e.Place == "Notify":
		case ports[port] == nil:
			t.Errorf("the edge %s stands around %s: there is no such port", e.Name, e.Place)
		case placed[e.Name] != method:
			t.Errorf("%s: the edge %s stands around %q, and should stand around %s", edges.Ports, e.Name, placed[e.Name], e.Place)
		default:
			delete(placed, e.Name)
		}
	}
	for edge, method := range placed {
		t.Errorf("%s: the edge %s around %s is not in the list", edges.Ports, edge, method)
	}
}

// A method that is added to a port gets its points, or is named as one that changes nothing.
func TestEveryWriteIsAnEdge(t *testing.T) {
	for name, port := range ports {
		for i := range port.NumMethod() {
			act := name + "." + port.Method(i).Name
			listed := slices.ContainsFunc(edges.All, func(e edges.Edge) bool { return e.Place == act })
			if listed == slices.Contains(reads, act) {
				t.Errorf("%s must be the place of an edge, or one of the reads", act)
			}
		}
	}
}

func TestEveryTransitionHasItsEdge(t *testing.T) {
	for _, v := range stepfleet.Transitions {
		if !slices.ContainsFunc(edges.All, func(e edges.Edge) bool { return slices.Contains(e.Verbs, v.Verb) }) {
			t.Errorf("no edge makes the transition %s from %q to %s", v.Verb, v.From, v.To)
		}
	}
	for _, verb := range []stepfleet.Verb{stepfleet.VerbTakeover, stepfleet.VerbRejoin} {
		if !slices.ContainsFunc(edges.All, func(e edges.Edge) bool { return slices.Contains(e.Verbs, verb) }) {
			t.Errorf("no edge has the verb %s", verb)
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range edges.All {
		if seen[e.Name] || e.Process != "server" && e.Process != "worker" {
			t.Errorf("edge %+v", e)
		}
		seen[e.Name] = true
	}
}
