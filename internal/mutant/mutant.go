// Package mutant names bugs that are seeded into the product to see that the tests find them: each
// lacks one rule of the protocol. The product has none of them: without the build tag "mutant" every
// name here is the constant false, and what stands behind it is not compiled. With the tag, the
// environment variable STEPFLEET_MUTANT says which one a process has. `make mutants` runs them all.
package mutant

// Variable chooses the mutant of a process that is built with the tag.
const Variable = "STEPFLEET_MUTANT"
