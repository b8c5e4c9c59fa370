package localaws

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// ServiceOperations is what exists of one service.
type ServiceOperations struct {
	// Service is the name in a credential scope: "sqs".
	Service string
	// Protocols are those that it speaks, as AWS's models name them.
	Protocols []string
	// Operations are those that are emulated, by name.
	Operations []string
}

// Operations lists what exists, by service. Every operation is there in every protocol of its
// service.
func (a *AWS) Operations() []ServiceOperations {
	var all []ServiceOperations
	for _, s := range a.services {
		all = append(all, ServiceOperations{s.Name, s.Protocols(), slices.Sorted(maps.Keys(s.Ops))})
	}
	slices.SortFunc(all, func(x, y ServiceOperations) int { return strings.Compare(x.Service, y.Service) })
	return all
}

// WriteOperations writes what exists as a page in Markdown.
func (a *AWS) WriteOperations(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# What the local AWS emulates\n\n" +
		"This page is generated: `go test ./localaws -run TestOperationsPage -update`. An operation that is\n" +
		"not here answers as AWS answers an unknown one, and is logged as \"not emulated\".\n")
	for _, s := range a.Operations() {
		fmt.Fprintf(&b, "\n## %s\n\n| operation | protocols |\n|---|---|\n", s.Service)
		for _, op := range s.Operations {
			fmt.Fprintf(&b, "| %s | %s |\n", op, strings.Join(s.Protocols, ", "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
